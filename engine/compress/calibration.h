// Texts to calibrate a compression on.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_CALIBRATION_H_
#define ULTRASKETCH_ENGINE_COMPRESS_CALIBRATION_H_

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/format/tokenizer/tokenizer.h"
#include "engine/models/model.h"

namespace ultrasketch {

struct CalibrationText {
  // Each a sequence of its own, not empty.
  std::vector<std::vector<int32_t>> windows;

  int64_t num_tokens() const;
};

// `num_windows` windows of up to `window_tokens` tokens, spread evenly over the files, which are
// read as a stream and only tokenized where a window lies. With `add_special_tokens` every window,
// a text of its own, begins with what the tokenizer's template puts before a text. A window starts
// at the start of a line where there is one near. Less text than windows gives all of it, cut into
// windows. Files whose name ends in ".xz" are decompressed.
//
// NOT_FOUND for an absent file, DATA_LOSS for a damaged archive, INVALID_ARGUMENT for text that is
// not UTF-8, and when all files together have no token.
absl::StatusOr<CalibrationText> ReadCalibration(const std::vector<std::string>& files,
                                                const Tokenizer& tokenizer, int64_t num_windows,
                                                int64_t window_tokens, bool add_special_tokens);

// Below this many tokens the fit follows the few that it has seen.
inline constexpr int64_t kFewCalibrationTokens = 2048;

// What is to be said about a text that is shorter than was asked for or has fewer than
// kFewCalibrationTokens: a sentence without an end of line; "" when there is nothing to say.
std::string CalibrationWarning(const CalibrationText& text, int64_t asked_windows,
                               int64_t asked_window_tokens);

// What the model itself writes at temperature 1, from its beginning-of-text token, or an end token
// where it has none, or else a random one. A function of the model and the seed alone.
// `model.options()` bounds how many windows are written at once. CANCELLED soon after `*cancelled`
// becomes true.
absl::StatusOr<CalibrationText> SampleCalibration(Model& model,
                                                  absl::Span<const int32_t> eos_token_ids,
                                                  uint64_t seed, int64_t num_windows,
                                                  int64_t window_tokens,
                                                  const std::atomic<bool>* cancelled = nullptr);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_CALIBRATION_H_
