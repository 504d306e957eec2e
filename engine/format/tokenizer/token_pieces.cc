// Tokens one by one as parts of a text.
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "engine/format/tokenizer/tokenizer.h"
#include "engine/format/tokenizer/tokenizer_impl.h"
#include "engine/format/tokenizer/utf8.h"

namespace ultrasketch {

using tokenizer_internal::ClassifyUtf8Prefix;
using tokenizer_internal::DecoderPipeline;
using tokenizer_internal::kReplacementCharacter;
using tokenizer_internal::Utf8Prefix;

namespace {

// Takes the whole characters from the beginning of `bytes`, with `ill_formed` of each byte sequence
// that cannot become one. The beginning of a character at the end stays.
template <typename IllFormed>
std::string TakeCharacters(std::string* bytes, IllFormed ill_formed) {
  std::string text;
  size_t position = 0;
  while (position < bytes->size()) {
    const std::string_view rest = std::string_view(*bytes).substr(position);
    size_t length;
    const Utf8Prefix prefix = ClassifyUtf8Prefix(rest, &length);
    if (prefix == Utf8Prefix::kIncomplete) break;
    const std::string_view sequence = rest.substr(0, length);
    text += prefix == Utf8Prefix::kComplete ? std::string(sequence) : ill_formed(sequence);
    position += length;
  }
  bytes->erase(0, position);
  return text;
}

std::string SpelledBytes(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes)
    absl::StrAppendFormat(&text, "<0x%02X>", static_cast<uint8_t>(byte));
  return text;
}

std::string DecodeAll(DecoderPipeline decoder, std::initializer_list<std::string_view> tokens) {
  std::string text;
  for (const std::string_view token : tokens) decoder.Add(token, &text);
  decoder.Finish(&text);
  return text;
}

}  // namespace

std::string Tokenizer::TokenBytes(int32_t id) const {
  const std::optional<std::string_view> token = impl_->Token(id);
  if (!token.has_value()) return std::string();
  // Decoders treat the first and the last token of a text, so it is decoded between two others.
  constexpr std::string_view kNeighbour = "a";
  const std::string neighbours = DecodeAll(impl_->byte_decoder, {kNeighbour, kNeighbour});
  std::string text = DecodeAll(impl_->byte_decoder, {kNeighbour, *token, kNeighbour});
  if (text.size() < neighbours.size()) return std::string();
  text.resize(text.size() - (neighbours.size() - kNeighbour.size()));
  return text.substr(kNeighbour.size());
}

std::string Tokenizer::TokenText(int32_t id) const {
  std::string bytes = TokenBytes(id);
  std::string text = TakeCharacters(&bytes, SpelledBytes);
  return text + SpelledBytes(bytes);
}

struct TokenPieceStream::State {
  const Tokenizer* tokenizer;
  bool skip_special_tokens;
  DecoderPipeline decoder;
  std::string pending = {};  // the beginning of a character

  // A skipped token takes no part in the text. Some vocabularies call their byte tokens special:
  // those are characters all the same.
  bool IsSkipped(int32_t id) const {
    return skip_special_tokens && tokenizer->IsSpecial(id) && tokenizer->TokenBytes(id).size() != 1;
  }

  TokenPiece Add(int32_t id) {
    if (IsSkipped(id))
      return {.text = tokenizer->TokenText(id), .bytes = tokenizer->TokenBytes(id)};
    TokenPiece piece;
    const std::optional<std::string_view> token = tokenizer->impl_->Token(id);
    if (token.has_value()) decoder.Add(*token, &piece.bytes);
    pending += piece.bytes;
    piece.text = TakeCharacters(
        &pending, [](std::string_view) { return std::string(kReplacementCharacter); });
    return piece;
  }
};

TokenPieceStream::TokenPieceStream(const Tokenizer& tokenizer, bool skip_special_tokens)
    : state_(new State{&tokenizer, skip_special_tokens, tokenizer.impl_->byte_decoder}) {}
TokenPieceStream::~TokenPieceStream() = default;
TokenPieceStream::TokenPieceStream(TokenPieceStream&&) noexcept = default;
TokenPieceStream& TokenPieceStream::operator=(TokenPieceStream&&) noexcept = default;

void TokenPieceStream::Prime(absl::Span<const int32_t> prompt) {
  for (const int32_t id : prompt) state_->Add(id);
}

TokenPiece TokenPieceStream::Add(int32_t id) { return state_->Add(id); }

std::string TokenPieceStream::Finish() {
  std::string bytes;
  state_->decoder.Finish(&bytes);
  state_->pending += bytes;
  std::string text = TakeCharacters(
      &state_->pending, [](std::string_view) { return std::string(kReplacementCharacter); });
  if (!state_->pending.empty()) text += kReplacementCharacter;
  return text;
}

}  // namespace ultrasketch
