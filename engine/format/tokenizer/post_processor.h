// The "post_processor" of a tokenizer file: the special tokens around a text.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_POST_PROCESSOR_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_POST_PROCESSOR_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/format/tokenizer/json_value.h"

namespace ultrasketch::tokenizer_internal {

// Immutable and thread-safe. Without a template it adds nothing.
class PostProcessor {
 public:
  PostProcessor() = default;

  // UNIMPLEMENTED, by name, for anything but TemplateProcessing, ByteLevel (which concerns offsets
  // alone) and a Sequence of them with at most one template.
  static absl::StatusOr<PostProcessor> FromJson(const JsonValue& json);

  // The text's ids with the template's around them.
  std::vector<int32_t> Apply(std::vector<int32_t> ids) const;

  // The ids that the template adds.
  std::vector<int32_t> AddedIds() const;

 private:
  absl::Status Add(const JsonValue& json);
  absl::Status AddTemplate(const JsonValue& json);

  // A piece of the template: special tokens, or the text.
  struct Piece {
    bool is_text;
    std::vector<int32_t> ids;
  };
  std::optional<std::vector<Piece>> template_;
};

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_POST_PROCESSOR_H_
