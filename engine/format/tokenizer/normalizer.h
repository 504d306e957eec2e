// The "normalizer" of a tokenizer file: what happens to the text before it is split.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_NORMALIZER_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_NORMALIZER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/format/tokenizer/json_value.h"
#include "engine/format/tokenizer/tokenizer.h"

namespace ultrasketch::tokenizer_internal {

// A text, and parts of it.
struct NormalizedText {
  std::string text;  // well-formed UTF-8
  // Ascending and apart from each other; those of EncodeOptions.
  std::vector<ByteRange> plain_ranges = {};
  bool lost_start = false;  // characters at the beginning were removed
};

// Immutable and thread-safe.
class Normalizer {
 public:
  virtual ~Normalizer() = default;

  // Rewrites the text, and moves its ranges to what has become of them. Sets `lost_start` when the
  // characters at the beginning were removed (and leaves it alone otherwise).
  virtual absl::Status Apply(NormalizedText* text) const = 0;

  // The normalizer that `json` describes; UNIMPLEMENTED, by name, when it is not one of those in
  // tokenizer.h.
  static absl::StatusOr<std::unique_ptr<Normalizer>> FromJson(const JsonValue& json);
};

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_NORMALIZER_H_
