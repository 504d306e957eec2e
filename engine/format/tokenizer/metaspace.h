// The settings that Metaspace has as a pre-tokenizer and as a decoder.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_METASPACE_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_METASPACE_H_

#include <string>

#include "absl/status/statusor.h"

#include "engine/format/tokenizer/json_value.h"

namespace ultrasketch::tokenizer_internal {

// Which pieces of text get a replacement character in front.
enum class PrependScheme { kAlways, kFirst, kNever };

struct MetaspaceOptions {
  std::string replacement;  // one character, in the place of a space
  PrependScheme prepend_scheme;
  bool split;
};

absl::StatusOr<MetaspaceOptions> MetaspaceOptionsFromJson(const JsonValue& json);

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_METASPACE_H_
