// UTF-8 a code point at a time.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_UTF8_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_UTF8_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ultrasketch::tokenizer_internal {

inline constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";  // U+FFFD

// Bytes of the well-formed UTF-8 sequence that begins with `lead`.
inline size_t Utf8Length(char lead) {
  const auto byte = static_cast<uint8_t>(lead);
  return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

// The code point at `*position` of well-formed UTF-8; advances `*position` past it.
inline uint32_t NextCodePoint(std::string_view text, size_t* position) {
  const auto byte = [&](size_t i) { return uint32_t{static_cast<uint8_t>(text[*position + i])}; };
  const uint32_t lead = byte(0);
  uint32_t code_point = lead;
  size_t length = 1;
  if (lead >= 0xf0) {
    code_point =
        (lead & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f);
    length = 4;
  } else if (lead >= 0xe0) {
    code_point = (lead & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f);
    length = 3;
  } else if (lead >= 0x80) {
    code_point = (lead & 0x1f) << 6 | (byte(1) & 0x3f);
    length = 2;
  }
  *position += length;
  return code_point;
}

// The last code point of non-empty well-formed UTF-8; `*length` receives its bytes.
uint32_t LastCodePoint(std::string_view text, size_t* length);

// `code_point` is a Unicode scalar value.
void AppendUtf8(uint32_t code_point, std::string* out);

// The offset of the first byte that is not part of well-formed UTF-8; text.size() when there is
// none.
size_t FirstInvalidUtf8(std::string_view text);

enum class Utf8Prefix {
  kComplete,    // a well-formed sequence of `length` bytes
  kIllFormed,   // `length` bytes that no continuation makes well-formed: one U+FFFD
  kIncomplete,  // all `length` bytes are the beginning of a well-formed sequence
};

// Classifies the beginning of non-empty `bytes`. Ill-formed bytes come in the maximal subparts of
// the Unicode Standard (section 3.9, "U+FFFD Substitution of Maximal Subparts"), as in Rust's
// String::from_utf8_lossy.
Utf8Prefix ClassifyUtf8Prefix(std::string_view bytes, size_t* length);

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_UTF8_H_
