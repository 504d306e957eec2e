// The norms of queries and keys, of architectures that have them.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_HEAD_NORMS_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_HEAD_NORMS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace ultrasketch::cuda {

// Each head's query and key of qkv [num_tokens][(num_heads + 2 * num_kv_heads) * head_dim] over
// their root mean square times a weight [head_dim], in place. Device pointers.
struct HeadNormArguments {
  float* qkv = nullptr;
  int64_t num_tokens = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  const float* query_weight = nullptr;
  const float* key_weight = nullptr;
  float epsilon = 0.0f;
};
// Returns the launch's error and does not wait.
cudaError_t LaunchNormalizeHeads(const HeadNormArguments& arguments, cudaStream_t stream);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_HEAD_NORMS_H_
