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
// read as a stream and only tokenized where a window lies; without special tokens added. A window
// starts at the start of a line where there is one near. Less text than windows gives all of it,
// cut into windows. Files whose name ends in ".xz" are decompressed.
//
// NOT_FOUND for an absent file, DATA_LOSS for a damaged archive, INVALID_ARGUMENT for text that is
// not UTF-8, and when all files together have no token.
absl::StatusOr<CalibrationText> ReadCalibration(const std::vector<std::string>& files,
                                                const Tokenizer& tokenizer, int64_t num_windows,
                                                int64_t window_tokens);

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
