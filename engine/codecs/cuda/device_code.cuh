// Instructions that CUDA C++ has no name for, and reductions over a block.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_DEVICE_CODE_CUH_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_DEVICE_CODE_CUH_

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace ultrasketch::cuda {

// A barrier for the compiler alone: loads of before are issued before it, and in flight at once.
__device__ inline void CompilerBarrier() { asm volatile("" ::: "memory"); }

// Brings the line of an address to L2. Not a read: it may come before a wait for what writes there.
__device__ inline void Prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}
inline constexpr int kLineBytes = 128;

// The lines of `num_bytes` from `begin` on: this thread's of num_threads.
__device__ inline void PrefetchRange(const void* begin, int64_t num_bytes, int thread,
                                     int num_threads) {
#pragma unroll 1
  for (int64_t offset = int64_t{thread} * kLineBytes; offset < num_bytes;
       offset += int64_t{num_threads} * kLineBytes) {
    Prefetch(static_cast<const uint8_t*>(begin) + offset);
  }
}

// 16 bytes from global to shared memory, asynchronously, past L1.
__device__ inline void CopyAsync16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}
// 4 bytes, the same way.
__device__ inline void CopyAsync4(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Returns when all but the last kPending committed groups of this thread have arrived.
template <int kPending>
__device__ inline void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ inline float WarpSum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

// The maximum of numbers that are not negative: their bits are in the same order.
__device__ inline float WarpAbsMax(float value) {
  return __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(value)));
}

// The sum in pairs, then pairs of those, and so on; kCount is a power of two.
template <int kCount>
__device__ inline float PairwiseSum(const float* values) {
  if constexpr (kCount == 1) {
    return values[0];
  } else {
    return PairwiseSum<kCount / 2>(values) + PairwiseSum<kCount / 2>(values + kCount / 2);
  }
}

// A sum over the block in two parts, with a barrier between them: all threads Give, then any may
// take the Sum. A thread's part p counts as that of thread `thread + p * kThreads` of kParts *
// kThreads: only that product decides the order.
template <int kThreads, int kParts>
struct BlockSum {
  static constexpr int kWarps = kThreads / 32;
  alignas(16) float sums[kParts * kWarps];  // in shared memory, as all of it

  __device__ void Give(const float (&parts)[kParts]) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const float sum = WarpSum(parts[part]);
      if (threadIdx.x % 32 == 0) sums[part * kWarps + static_cast<int>(threadIdx.x) / 32] = sum;
    }
  }
  __device__ float Sum() const { return PairwiseSum<kParts * kWarps>(sums); }
};

// The maximum of all threads of the block, to all of them; no magnitude is negative. Every thread
// of the block calls it; between two calls of a kernel lies a barrier.
template <int kThreads>
__device__ inline float BlockMax(float magnitude) {
  __shared__ __align__(16) float maxima[kThreads / 32];
  magnitude = WarpAbsMax(magnitude);
  if (threadIdx.x % 32 == 0) maxima[threadIdx.x / 32] = magnitude;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < kThreads / 32; ++warp) magnitude = fmaxf(magnitude, maxima[warp]);
  return magnitude;
}

// The nearest integer, ties to even, of numbers up to 2^22; in two instructions of the common
// units where the conversion is one of few.
__device__ inline int RoundToInteger(float value) {
  constexpr float kUnits = 0x1.8p23f;  // the last bit of numbers near it is 1
  return __float_as_int(__fadd_rn(value, kUnits)) - 0x4b400000;
}

// Has the compiler compute a value here, where there is time for it, and not later.
__device__ inline void Materialize(int& value) { asm volatile("" : "+r"(value)); }
__device__ inline void Materialize(float2& values) {
  asm volatile("" : "+f"(values.x), "+f"(values.y));
}

// The warp's index in its block, by way of all lanes: the compiler knows it to be the same in each.
__device__ inline int ThisWarp() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
}

// silu(gate) * up.
__device__ inline float SwiGluValue(float gate, float up) {
  return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

// A power of two and its inverse.
struct PowerOfTwo {
  float factor;
  float inverse;
};

// `bound` times the factor is in [2^14, 2^15): as large as fp16 holds, with room for rounding. 1
// for bounds that are 0 or not finite.
__device__ inline PowerOfTwo ScaleToHalfRange(float bound) {
  if (!(bound > 0.0f) || bound > 3.4e38f) return {1.0f, 1.0f};
  const int exponent = static_cast<int>(__float_as_uint(bound) >> 23) - 127;
  const int shift = min(14 - exponent, 100);  // leaves room for the inverse RMS
  return {__int_as_float((shift + 127) << 23), __int_as_float((127 - shift) << 23)};
}

// The largest finite fp16 number of its sign instead of infinity; a NaN stays one.
__device__ inline __half SaturateToHalf(float value) {
  if (value > 65504.0f) return __float2half_rn(65504.0f);
  if (value < -65504.0f) return __float2half_rn(-65504.0f);
  return __float2half_rn(value);
}

__device__ inline uint32_t PackHalves(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_DEVICE_CODE_CUH_
