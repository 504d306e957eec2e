// Log-probabilities of tokens that were given, not sampled.
#ifndef ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_TOKEN_LOGPROBS_H_
#define ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_TOKEN_LOGPROBS_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/backends/sampling/sampling.h"

namespace ultrasketch {

// Log-softmax of `logits` [vocab_size] at `id`, and the `num_top` most likely tokens (fewer when
// the vocabulary is smaller; ties go to the lower id), accumulated in double. INTERNAL when a logit
// is NaN or +inf.
absl::StatusOr<SampledToken> LogprobsOfToken(absl::Span<const float> logits, int32_t id,
                                             int32_t num_top);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_TOKEN_LOGPROBS_H_
