// Sampling on the device: the operations of engine/backends/sampling on the same numbers in the
// same order, so that the same logits give the same token.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_SAMPLER_KERNELS_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_SAMPLER_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace ultrasketch::cuda {

// Most tokens that a draw limited by count chooses from, and that log probabilities are listed of.
inline constexpr int kMaxSelected = 1024;

// What happens to a logit, in this order: `bias` is added, it is made less likely for having come
// before, `penalty` is subtracted, it becomes -infinity.
struct LogitEdit {
  int32_t id;
  float bias;
  float penalty;
  uint8_t has_bias;
  uint8_t is_repeated;
  uint8_t has_penalty;
  uint8_t is_forbidden;
};

struct DrawRequest {
  int64_t logits_row;
  double uniform;  // in [0, 1)
  int32_t first_edit;
  int32_t num_edits;
  int32_t edited_row;  // of the scratch memory; -1 when there are no edits
  float repetition_penalty;
  float inverse_temperature;
  float min_p;
  float top_p;
  int32_t is_greedy;
  int32_t top_k;              // 1 to kMaxSelected; 0: all
  int32_t wants_logprob;      // of the token drawn
  int32_t num_most_likely;    // 0 to kMaxSelected
  int32_t first_most_likely;  // where they go
};

// By raw logits: before edits.
struct DrawResult {
  int32_t id;
  int32_t usable;  // 0: a logit is NaN or +infinity, or all are -infinity, before or after edits
  float maximum;
  float logit;          // of the token
  double total_weight;  // sum of e^(logit - maximum), when wants_logprob
};

struct MostLikelyToken {
  int32_t id;
  float logit;
};

struct DrawArguments {
  const float* logits = nullptr;
  int64_t vocab_size = 0;  // at most 2^20
  const DrawRequest* requests = nullptr;
  int64_t num_requests = 0;
  const LogitEdit* edits = nullptr;
  float* edited_rows = nullptr;  // scratch, [.][vocab_size]
  DrawResult* results = nullptr;
  MostLikelyToken* most_likely = nullptr;  // most likely first
};

cudaError_t LaunchDraws(const DrawArguments& arguments, cudaStream_t stream);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_SAMPLER_KERNELS_H_
