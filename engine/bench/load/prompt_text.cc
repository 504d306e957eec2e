#include "engine/bench/load/prompt_text.h"

#include "absl/status/status.h"

#include "engine/base/status.h"

namespace ultrasketch {
namespace {

constexpr size_t kPieceBytes = size_t{1} << 14;

bool ContinuesCharacter(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

}  // namespace

std::vector<std::string_view> CutText(std::string_view text, size_t max_bytes) {
  std::vector<std::string_view> pieces;
  while (text.size() > max_bytes) {
    // A piece that begins with a space must not end before it.
    size_t end = max_bytes;
    while (end > 1 && text[end] != ' ' && text[end - 1] != '\n') --end;
    if (end <= 1) {
      end = max_bytes;
      while (end > max_bytes - 3 && ContinuesCharacter(text[end])) --end;
    }
    pieces.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
  if (!text.empty()) pieces.push_back(text);
  return pieces;
}

absl::StatusOr<std::vector<int32_t>> EncodePromptText(std::string_view text,
                                                      const EncodePiece& encode) {
  std::vector<int32_t> ids;
  for (const std::string_view piece : CutText(text, kPieceBytes)) {
    US_ASSIGN_OR_RETURN(const std::vector<int32_t> piece_ids, encode(piece));
    ids.insert(ids.end(), piece_ids.begin(), piece_ids.end());
  }
  if (ids.empty()) {
    return absl::InvalidArgumentError("the text for the prompts has no tokens: expected some");
  }
  return ids;
}

}  // namespace ultrasketch
