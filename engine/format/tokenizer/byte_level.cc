#include "engine/format/tokenizer/byte_level.h"

#include <array>

#include "engine/format/tokenizer/utf8.h"

namespace ultrasketch::tokenizer_internal {
namespace {

constexpr uint32_t kNumCharacters = 0x144;  // one past the alphabet's largest

struct Alphabet {
  std::array<uint16_t, 256> character_of_byte = {};
  std::array<int16_t, kNumCharacters> byte_of_character = {};  // -1: none
};

// Printable Latin-1 bytes stand for themselves, the others, in order, for U+0100 and up.
constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  for (int16_t& byte : alphabet.byte_of_character) byte = -1;
  uint16_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
    const auto character = printable ? static_cast<uint16_t>(byte) : next++;
    alphabet.character_of_byte[byte] = character;
    alphabet.byte_of_character[character] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

void AppendByteAlphabet(std::string_view bytes, std::string* out) {
  const size_t start = out->size();
  out->resize(start + 2 * bytes.size());
  char* end = out->data() + start;
  for (const char byte : bytes) {
    const uint32_t character = kAlphabet.character_of_byte[static_cast<uint8_t>(byte)];
    if (character < 0x80) {
      *end++ = static_cast<char>(character);
    } else {
      *end++ = static_cast<char>(0xc0 | character >> 6);
      *end++ = static_cast<char>(0x80 | (character & 0x3f));
    }
  }
  out->resize(end - out->data());
}

std::optional<uint8_t> ByteOfCharacter(uint32_t code_point) {
  if (code_point >= kNumCharacters || kAlphabet.byte_of_character[code_point] < 0) {
    return std::nullopt;
  }
  return static_cast<uint8_t>(kAlphabet.byte_of_character[code_point]);
}

}  // namespace ultrasketch::tokenizer_internal
