// The rotary embedding, and new keys and values to the cache. One block a token: bound by latency.
#include <cuda_fp16.h>

#include "engine/backends/cuda/kernels.h"
#include "engine/backends/cuda/producer_launch.cuh"
#include "engine/codecs/cuda/device_code.cuh"

namespace ultrasketch::cuda {
namespace {

__global__ void __launch_bounds__(kProducerThreads)
    RotateAndStore(const __grid_constant__ AttentionGeometry geometry, const float* frequencies,
                   const TokenInput* tokens, const int32_t* block_table, __half* keys,
                   __half* values, float* qkv) {
  extern __shared__ float rotations[];  // cosines [head_dim / 2], sines
  AllowNextKernel();
  WaitForKernelBefore();
  const TokenInput token = tokens[blockIdx.x];
  const int thread = static_cast<int>(threadIdx.x);
  const int head_dim = geometry.head_dim;
  const int half = head_dim / 2;
  for (int i = thread; i < half; i += kProducerThreads) {
    const float angle = static_cast<float>(token.position) * frequencies[i];
    sincosf(angle, &rotations[half + i], &rotations[i]);
  }
  __syncthreads();

  float* row = qkv + blockIdx.x * geometry.qkv_width();
  const int64_t block = block_table[token.first_block + token.cache_position / geometry.block_size];
  const int64_t slot = token.cache_position % geometry.block_size;
  const int64_t base = block * geometry.num_kv_heads * geometry.block_size * head_dim;
  const int num_rotated = geometry.num_heads + geometry.num_kv_heads;
  for (int index = thread; index < num_rotated * half; index += kProducerThreads) {
    const int head = index / half;
    const int i = index % half;
    float* low = row + head * head_dim + i;
    const float a = low[0];
    const float b = low[half];
    const float cosine = rotations[i];
    const float sine = rotations[half + i];
    const float first = a * cosine - b * sine;
    const float second = b * cosine + a * sine;
    low[0] = first;
    low[half] = second;
    if (head >= geometry.num_heads) {
      const int kv_head = head - geometry.num_heads;
      __half* key = keys + base + (int64_t{kv_head} * geometry.block_size + slot) * head_dim + i;
      key[0] = SaturateToHalf(first);
      key[half] = SaturateToHalf(second);
    }
  }
  const float* v = row + num_rotated * head_dim;
  for (int index = thread; index < geometry.num_kv_heads * head_dim; index += kProducerThreads) {
    values[base + int64_t{index} * geometry.block_size + slot] = SaturateToHalf(v[index]);
  }
}

}  // namespace

cudaError_t LaunchRotateAndStore(const AttentionGeometry& geometry, const float* frequencies,
                                 const TokenInput* tokens, int64_t num_tokens,
                                 const int32_t* block_table, CacheView cache, float* qkv,
                                 cudaStream_t stream) {
  const auto shared_bytes = static_cast<size_t>(geometry.head_dim) * sizeof(float);
  return LaunchKernel(RotateAndStore, dim3(static_cast<unsigned>(num_tokens)), kProducerThreads,
                      shared_bytes, stream, geometry, frequencies, tokens, block_table,
                      static_cast<__half*>(cache.keys), static_cast<__half*>(cache.values), qkv);
}

}  // namespace ultrasketch::cuda
