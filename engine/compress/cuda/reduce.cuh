// Sums over the threads of a block, always in the same order; every thread gets the result.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_CUDA_REDUCE_CUH_
#define ULTRASKETCH_ENGINE_COMPRESS_CUDA_REDUCE_CUH_

namespace ultrasketch::cuda {

__device__ __forceinline__ double WarpSum(double value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

// `scratch` [kThreads / 32] may be used again at once.
template <int kThreads>
__device__ __forceinline__ double BlockSum(double value, double* scratch) {
  value = WarpSum(value);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
#pragma unroll
  for (int warp = 0; warp < kThreads / 32; ++warp) sum += scratch[warp];
  __syncthreads();
  return sum;
}

template <int kThreads>
__device__ __forceinline__ float BlockMaximum(float value, double* scratch) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = static_cast<double>(value);
  __syncthreads();
  float largest = value;
#pragma unroll
  for (int warp = 0; warp < kThreads / 32; ++warp) {
    largest = fmaxf(largest, static_cast<float>(scratch[warp]));
  }
  __syncthreads();
  return largest;
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_COMPRESS_CUDA_REDUCE_CUH_
