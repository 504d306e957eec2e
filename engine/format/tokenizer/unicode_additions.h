// General categories of the characters that Unicode 15.0, 15.1 and 16.0 added: the regular
// expressions of the `tokenizers` library know them, Debian 12's PCRE2 (Unicode 14) and ICU (15) do
// not. Most are Chinese ideographs.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_UNICODE_ADDITIONS_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_UNICODE_ADDITIONS_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace ultrasketch::tokenizer_internal {

// The added characters of a category ("Lo") or a group of them ("L"), as the contents of a PCRE2
// character class: "\x{1c89}-\x{1c89}\x{a7cb}-...". Empty when there are none.
std::string AddedRanges(std::string_view category);

// The category of an added character; empty for any other.
std::string_view AddedCategory(uint32_t code_point);

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_UNICODE_ADDITIONS_H_
