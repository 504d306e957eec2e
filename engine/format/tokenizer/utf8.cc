#include "engine/format/tokenizer/utf8.h"

#include <cstring>

namespace ultrasketch::tokenizer_internal {

uint32_t LastCodePoint(std::string_view text, size_t* length) {
  size_t start = text.size() - 1;
  while ((static_cast<uint8_t>(text[start]) & 0xc0) == 0x80) --start;
  *length = text.size() - start;
  return NextCodePoint(text, &start);
}

void AppendUtf8(uint32_t code_point, std::string* out) {
  const auto append = [out](uint32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    append(code_point);
  } else if (code_point < 0x800) {
    append(0xc0 | code_point >> 6);
    append(0x80 | (code_point & 0x3f));
  } else if (code_point < 0x10000) {
    append(0xe0 | code_point >> 12);
    append(0x80 | (code_point >> 6 & 0x3f));
    append(0x80 | (code_point & 0x3f));
  } else {
    append(0xf0 | code_point >> 18);
    append(0x80 | (code_point >> 12 & 0x3f));
    append(0x80 | (code_point >> 6 & 0x3f));
    append(0x80 | (code_point & 0x3f));
  }
}

size_t FirstInvalidUtf8(std::string_view text) {
  size_t position = 0;
  while (position < text.size()) {
    if (text.size() - position >= 8) {
      uint64_t word;
      std::memcpy(&word, text.data() + position, 8);
      if ((word & 0x8080808080808080u) == 0) {
        position += 8;
        continue;
      }
    }
    size_t length;
    if (ClassifyUtf8Prefix(text.substr(position), &length) != Utf8Prefix::kComplete) break;
    position += length;
  }
  return position;
}

Utf8Prefix ClassifyUtf8Prefix(std::string_view bytes, size_t* length) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = byte(0);
  *length = 1;
  if (lead < 0x80) return Utf8Prefix::kComplete;
  if (lead < 0xc2 || lead > 0xf4) return Utf8Prefix::kIllFormed;
  const size_t expected = Utf8Length(bytes[0]);
  // The second byte's range excludes overlong forms, surrogates and what lies past U+10FFFF.
  const uint8_t second_min = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const uint8_t second_max = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  while (*length < expected) {
    if (*length == bytes.size()) return Utf8Prefix::kIncomplete;
    const uint8_t min = *length == 1 ? second_min : 0x80;
    const uint8_t max = *length == 1 ? second_max : 0xbf;
    if (byte(*length) < min || byte(*length) > max) return Utf8Prefix::kIllFormed;
    ++*length;
  }
  return Utf8Prefix::kComplete;
}

}  // namespace ultrasketch::tokenizer_internal
