// How partial results of attention are merged. Written out to the rounding, since the same KV
// splits are merged in one kernel for long prompts and in another for decoding.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_ATTENTION_MERGE_CUH_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_ATTENTION_MERGE_CUH_

#include <cuda_runtime.h>

#include <cmath>

namespace ultrasketch::cuda {

// Two to the power of `exponent`, within 2 units in the last place; 0 below 2^-126.
__device__ inline float Exp2(float exponent) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(exponent));
  return result;
}

// Scores are in units of log2: weights are powers of two of them. The weight of what has maximum
// `part` beside a maximum of `whole`; nothing at all has a maximum of -infinity.
__device__ inline float PartWeight(float part, float whole) {
  return part == -INFINITY ? 0.0f : Exp2(__fsub_rn(part, whole));
}

struct MergeWeights {
  float maximum;  // of both
  float before;
  float added;
};

__device__ inline MergeWeights WeighMerge(float maximum_before, float maximum_added) {
  const float maximum = fmaxf(maximum_before, maximum_added);
  return {maximum, PartWeight(maximum_before, maximum), PartWeight(maximum_added, maximum)};
}

// For sums and for weighted values alike.
__device__ inline float Merge(float before, float added, const MergeWeights& weights) {
  return __fmaf_rn(before, weights.before, __fmul_rn(added, weights.added));
}

// A weighted mean of merged values is each times the inverse of the merged sum.
__device__ inline float InverseSum(float sum) { return __frcp_rn(sum); }

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_ATTENTION_MERGE_CUH_
