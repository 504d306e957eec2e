// The "pre_tokenizer" of a tokenizer file: how a text is cut into the pieces that the model encodes
// one by one.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_PRE_TOKENIZER_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_PRE_TOKENIZER_H_

#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/format/tokenizer/json_value.h"
#include "engine/format/tokenizer/regex.h"

namespace ultrasketch::tokenizer_internal {

// A text and the pieces of it that are still to be encoded: in order, not overlapping, not empty;
// what lies in no piece is dropped.
struct PieceList {
  std::string text;
  std::vector<TextRange> pieces;
  // Whether the first piece begins where the text given to Encode begins.
  bool is_start_of_input = false;
  const std::atomic<bool>* cancelled = nullptr;  // as in EncodeOptions

  std::string_view View(const TextRange& piece) const {
    return std::string_view(text).substr(piece.begin, piece.end - piece.begin);
  }
};

// Immutable and thread-safe.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;

  // Splits each piece further, and may rewrite the text. CANCELLED when the list says so.
  virtual absl::Status Apply(PieceList* list) const = 0;

  // The pre-tokenizer that `json` describes; UNIMPLEMENTED, by name, when it is not one of those in
  // tokenizer.h.
  static absl::StatusOr<std::unique_ptr<PreTokenizer>> FromJson(const JsonValue& json);
};

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_PRE_TOKENIZER_H_
