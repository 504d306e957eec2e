// Prompts out of a text.
#ifndef ULTRASKETCH_ENGINE_BENCH_LOAD_PROMPT_TEXT_H_
#define ULTRASKETCH_ENGINE_BENCH_LOAD_PROMPT_TEXT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace ultrasketch {

// `text` in pieces of at most `max_bytes`, at least 4, that joined are the text: each ends before a
// space or at the end of a line where there is one, and never within a character of UTF-8.
std::vector<std::string_view> CutText(std::string_view text, size_t max_bytes);

// How a piece of text becomes tokens, without what goes around a text.
using EncodePiece = std::function<absl::StatusOr<std::vector<int32_t>>(std::string_view piece)>;

// The tokens of a text, piece by piece: a server takes no text of any length. INVALID_ARGUMENT when
// it has none; what `encode` returns.
absl::StatusOr<std::vector<int32_t>> EncodePromptText(std::string_view text,
                                                      const EncodePiece& encode);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_LOAD_PROMPT_TEXT_H_
