// The most likely token of rows of logits: one pass, bound by reading them.
#include <cuda_runtime.h>

#include "engine/backends/cuda/kernels.h"

namespace ultrasketch::cuda {
namespace {

constexpr int kThreads = 1024;

// Orders as floats do and puts NaNs outside the infinities: an integer maximum finds them too.
__device__ int32_t OrderedKey(float value) {
  const int32_t bits = __float_as_int(value);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

struct Best {
  int32_t least;
  int32_t most;
  int32_t id;  // the lowest with key `most`
};

__device__ Best Merge(Best a, Best b) {
  const bool take_b = b.most > a.most || (b.most == a.most && b.id < a.id);
  return {min(a.least, b.least), take_b ? b.most : a.most, take_b ? b.id : a.id};
}

__global__ void __launch_bounds__(kThreads)
    RowMaxima(const float* logits, int64_t vocab_size, const int32_t* rows, RowMaximum* maxima) {
  __shared__ Best warps[kThreads / 32];
  const float* row = logits + rows[blockIdx.x] * vocab_size;
  Best best = {INT32_MAX, INT32_MIN, INT32_MAX};
  for (int64_t id = threadIdx.x; id < vocab_size; id += kThreads) {
    // -0 and 0 are equal: the lower id wins.
    const int32_t key = OrderedKey(row[id] + 0.0f);
    best = Merge(best, {key, key, static_cast<int32_t>(id)});
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    const Best other = {__shfl_xor_sync(0xffffffffu, best.least, distance),
                        __shfl_xor_sync(0xffffffffu, best.most, distance),
                        __shfl_xor_sync(0xffffffffu, best.id, distance)};
    best = Merge(best, other);
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kThreads / 32; ++warp) best = Merge(best, warps[warp]);
  constexpr int32_t kInfinity = 0x7f800000;
  const bool usable = best.least >= ~kInfinity && best.most < kInfinity && best.most > ~kInfinity;
  maxima[blockIdx.x] = {best.id, usable ? 1 : 0};
}

}  // namespace

cudaError_t LaunchRowMaxima(const float* logits, int64_t vocab_size, const int32_t* rows,
                            int64_t num_rows, RowMaximum* maxima, cudaStream_t stream) {
  RowMaxima<<<static_cast<unsigned>(num_rows), kThreads, 0, stream>>>(logits, vocab_size, rows,
                                                                      maxima);
  return cudaGetLastError();
}

}  // namespace ultrasketch::cuda
