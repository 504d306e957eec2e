// How confident a compressed model should be.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_LOGIT_SCALE_H_
#define ULTRASKETCH_ENGINE_COMPRESS_LOGIT_SCALE_H_

#include <cstdint>

#include "absl/status/statusor.h"

#include "engine/base/tensor.h"
#include "engine/compress/fit_device.h"
#include "engine/format/model_config.h"

namespace ultrasketch {

// The factor s that minimizes the mean cross-entropy of softmax(s * head . compressed_x) against
// softmax(head . dense_x), both inputs [num_tokens, hidden_size] in the device's memory, `head`
// [vocab_size, hidden_size] of a floating type. In [kLeastLogitScale, kLargestLogitScale]. Errors
// are the device's.
//
// A compressed model's hidden states are the dense ones with noise: logits made from them as they
// are would be too sure.
inline constexpr double kLeastLogitScale = 0.2;
inline constexpr double kLargestLogitScale = 1.5;
absl::StatusOr<double> BestLogitScale(const TensorView& head, const float* dense_x,
                                      const float* compressed_x, int64_t num_tokens,
                                      FitDevice& device);

// Bytes of logits that it holds in the device's memory, beside the head.
int64_t LogitScaleMemory(const ModelConfig& config);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_LOGIT_SCALE_H_
