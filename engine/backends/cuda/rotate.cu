// The rotary embedding, and new keys and values to the cache. One block a token, several where
// tokens are few: bound by latency, then by memory.
#include <cuda_fp16.h>

#include "engine/backends/cuda/input_launch.cuh"
#include "engine/backends/cuda/kernels.h"
#include "engine/backends/cuda/rotation.cuh"
#include "engine/codecs/cuda/device_code.cuh"

namespace ultrasketch::cuda {
namespace {

__global__ void __launch_bounds__(kInputThreads)
    RotateAndStore(const __grid_constant__ AttentionGeometry geometry, const float* frequencies,
                   const TokenInput* tokens, const int32_t* block_table, __half* keys,
                   __half* values, float* qkv) {
  LaunchDependents();
  const TokenInput token = tokens[blockIdx.x];
  const int thread = static_cast<int>(blockIdx.y) * kInputThreads + static_cast<int>(threadIdx.x);
  const int num_threads = static_cast<int>(gridDim.y) * kInputThreads;
  const int head_dim = geometry.head_dim;
  const int half = head_dim / 2;
  float* row = qkv + blockIdx.x * geometry.qkv_width();
  const int64_t block = block_table[token.first_block + token.cache_position / geometry.block_size];
  const int64_t slot = token.cache_position % geometry.block_size;
  const int64_t base = block * geometry.num_kv_heads * geometry.block_size * head_dim;
  const int num_rotated = geometry.num_heads + geometry.num_kv_heads;
  Rotation rotation(frequencies, token.position);
  rotation.TurnTo(thread % half);
  WaitForGridDependency();
  for (int index = thread; index < num_rotated * half; index += num_threads) {
    const int head = index / half;
    const int i = index % half;
    rotation.TurnTo(i);
    float* low = row + head * head_dim + i;
    const float2 rotated = rotation.Apply(low[0], low[half]);
    low[0] = rotated.x;
    low[half] = rotated.y;
    if (head >= geometry.num_heads) {
      const int kv_head = head - geometry.num_heads;
      __half* key = keys + base + (int64_t{kv_head} * geometry.block_size + slot) * head_dim + i;
      key[0] = SaturateToHalf(rotated.x);
      key[half] = SaturateToHalf(rotated.y);
    }
  }
  const float* v = row + num_rotated * head_dim;
  for (int index = thread; index < geometry.num_kv_heads * head_dim; index += num_threads) {
    values[base + int64_t{index} * geometry.block_size + slot] = SaturateToHalf(v[index]);
  }
}

}  // namespace

cudaError_t LaunchRotateAndStore(const AttentionGeometry& geometry, const float* frequencies,
                                 const TokenInput* tokens, int64_t num_tokens,
                                 const int32_t* block_table, CacheView cache, float* qkv,
                                 cudaStream_t stream) {
  if (geometry.is_int8) {
    return LaunchRotateAndStoreInt8(geometry, frequencies, tokens, num_tokens, block_table, cache,
                                    qkv, stream);
  }
  constexpr int64_t kFewTokens = 32;
  const dim3 grid(static_cast<unsigned>(num_tokens), num_tokens <= kFewTokens ? 4 : 1);
  return LaunchKernel(RotateAndStore, grid, kInputThreads, /*shared_bytes=*/0, stream, geometry,
                      frequencies, tokens, block_table, static_cast<__half*>(cache.keys),
                      static_cast<__half*>(cache.values), qkv);
}

}  // namespace ultrasketch::cuda
