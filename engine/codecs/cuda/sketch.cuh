// Device code that turns an input in shared memory into a prepared input.
//
// One block holds one token's input: cols floats in shared memory, from which buckets gather their
// columns at random (about three lanes to a bank: some hundred cycles for 4,096 columns). When
// there are few tokens several blocks produce the same input and each writes a share of its
// buckets: computing it again is quicker than one multiprocessor gathering alone.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_SKETCH_CUH_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_SKETCH_CUH_

#include <cuda_fp16.h>

#include <cstdint>

#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/sketch.h"
#include "engine/codecs/cuda/tile_layout.h"

namespace ultrasketch::cuda {

// Part `index` of `count` of the work on one token.
struct Share {
  int index;
  int count;
};

// Asks for the sketch's tables, which a large model's weights have pushed out of the cache since
// the step before. For a block's first lines, before it waits for its input.
template <int kThreads>
__device__ inline void PrefetchSketch(const InputSketch& sketch, Share share) {
  // The blocks of a few tokens see to it for all.
  if (sketch.num_groups == 0 || blockIdx.x >= 4) return;
  const int thread = share.index * kThreads + static_cast<int>(threadIdx.x);
  PrefetchRange(sketch.columns, sketch.cols * sketch.column_bytes, thread, share.count * kThreads);
  PrefetchRange(sketch.groups, sketch.num_groups * int64_t{sizeof(SketchGroup)}, thread,
                share.count * kThreads);
}

template <typename Entry>
__device__ inline float BucketSum(const float* x, const Entry* columns, int columns_per_bucket) {
  constexpr Entry kSign = static_cast<Entry>(Entry{1} << (8 * sizeof(Entry) - 1));
  float sum = 0.0f;
  for (int i = 0; i < columns_per_bucket; ++i) {
    const Entry entry = columns[i];
    const float value = x[entry & static_cast<Entry>(~kSign)];
    sum += (entry & kSign) != 0 ? -value : value;
  }
  return sum;
}

template <typename Entry, int kThreads>
__device__ inline void WriteBuckets(const float* x, const InputSketch& sketch, float factor,
                                    Share share, __half* out) {
  for (int index = 0; index < sketch.num_groups; ++index) {
    const SketchGroup group = sketch.groups[index];
    const Entry* columns = static_cast<const Entry*>(sketch.columns) + group.first_column;
    for (int bucket = share.index * kThreads + static_cast<int>(threadIdx.x);
         bucket < group.num_buckets; bucket += share.count * kThreads) {
      const float sum =
          BucketSum(x, columns + bucket * group.columns_per_bucket, group.columns_per_bucket);
      out[group.first_bucket + bucket] = __float2half_rn(sum * group.weight * factor);
    }
  }
}

// Writes the prepared input of `gain` * x. `x` [cols] is in shared memory, complete; `maximum` is
// the largest of its magnitudes. All threads of the block take part.
template <int kThreads>
__device__ inline void WritePrepared(const float* x, float gain, float maximum,
                                     const InputSketch& sketch, Share share, uint8_t* row) {
  const PowerOfTwo scale = ScaleToHalfRange(maximum * gain * sketch.max_gain);
  const float factor = gain * scale.factor;
  auto* out = reinterpret_cast<__half*>(row);
  int64_t used = sketch.cols;
  if (sketch.num_groups == 0) {
    for (int64_t i = share.index * kThreads + static_cast<int>(threadIdx.x); i < sketch.cols;
         i += share.count * kThreads) {
      out[i] = __float2half_rn(x[i] * factor);
    }
  } else {
    const SketchGroup last = sketch.groups[sketch.num_groups - 1];
    used = last.first_bucket + last.num_buckets;
    if (sketch.column_bytes == 2) {
      WriteBuckets<uint16_t, kThreads>(x, sketch, factor, share, out);
    } else {
      WriteBuckets<uint32_t, kThreads>(x, sketch, factor, share, out);
    }
  }
  if (share.index != 0) return;
  const int64_t i = used + static_cast<int>(threadIdx.x);
  if (i < sketch.num_steps * kStepColumns) out[i] = __float2half_rn(0.0f);
  if (threadIdx.x == 0) {
    *reinterpret_cast<float*>(row + PreparedScaleOffset(sketch.num_steps)) = scale.inverse;
  }
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_SKETCH_CUH_
