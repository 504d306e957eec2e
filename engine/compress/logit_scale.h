// How confident a compressed model should be.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_LOGIT_SCALE_H_
#define ULTRASKETCH_ENGINE_COMPRESS_LOGIT_SCALE_H_

#include <cstdint>

#include "engine/base/tensor.h"
#include "engine/base/thread_pool.h"
#include "engine/format/model_config.h"

namespace ultrasketch {

// The factor s that minimizes the mean cross-entropy of softmax(s * head . compressed_x) against
// softmax(head . dense_x), both inputs [num_tokens, hidden_size], `head` [vocab_size, hidden_size]
// of a floating type. In [kLeastLogitScale, kLargestLogitScale].
//
// A compressed model's hidden states are the dense ones with noise: logits made from them as they
// are would be too sure.
inline constexpr double kLeastLogitScale = 0.2;
inline constexpr double kLargestLogitScale = 1.5;
double BestLogitScale(const TensorView& head, const float* dense_x, const float* compressed_x,
                      int64_t num_tokens, ThreadPool& pool);

// Bytes of memory that it takes.
int64_t LogitScaleMemory(const ModelConfig& config);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_LOGIT_SCALE_H_
