// Of the characters that the `tokenizers` library knows and Debian 12's PCRE2 (Unicode 14) and ICU
// (15) do not: the general categories of those that Unicode 15.0, 15.1 and 16.0 added, which its
// regular expressions know (most are Chinese ideographs), and the lower case of those that 16.0 and
// 17.0 added.
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

// The lower case of any character, itself when it has none. The one character whose lower case is
// two, U+0130, has the first of them.
uint32_t LowerCase(uint32_t code_point);

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_UNICODE_ADDITIONS_H_
