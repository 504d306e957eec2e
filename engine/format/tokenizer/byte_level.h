// GPT-2's byte alphabet: one printable character for each byte, so that a vocabulary of bytes can
// be written as text.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_BYTE_LEVEL_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_BYTE_LEVEL_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace ultrasketch::tokenizer_internal {

// Appends the characters that stand for the bytes of `bytes`.
void AppendByteAlphabet(std::string_view bytes, std::string* out);

// The byte that a character stands for; nullopt when it is not in the alphabet.
std::optional<uint8_t> ByteOfCharacter(uint32_t code_point);

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_BYTE_LEVEL_H_
