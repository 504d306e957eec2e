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

// Begins to copy the sketch's tables to shared memory at `staged`, and returns the sketch with its
// tables there. The copies are there after a WaitForCopies<0> of each thread and a barrier: for a
// block's first lines, so that they come while it waits for its input. Without room, `staged` null,
// tables are only asked for: a large model's weights have pushed them out of the cache since the
// step before.
template <int kThreads>
__device__ inline InputSketch StageSketch(const InputSketch& sketch, uint8_t* staged, Share share) {
  InputSketch result = sketch;
  if (sketch.num_groups == 0) return result;
  const int thread = static_cast<int>(threadIdx.x);
  if (staged == nullptr) {
    // The blocks of a few tokens see to it for all.
    if (blockIdx.x >= 4) return result;
    const int index = share.index * kThreads + thread;
    PrefetchRange(sketch.columns, sketch.table_bytes(), index, share.count * kThreads);
    PrefetchRange(sketch.groups, sketch.group_bytes(), index, share.count * kThreads);
    return result;
  }
  const auto copy = [&](const void* from, int64_t num_bytes) {
#pragma unroll 1
    for (int offset = thread * 16; offset < static_cast<int>(num_bytes); offset += kThreads * 16) {
      CopyAsync16(staged + offset, static_cast<const uint8_t*>(from) + offset);
    }
    const void* begin = staged;
    staged += num_bytes;
    return begin;
  };
  result.columns = copy(sketch.columns, sketch.table_bytes());
  result.groups = static_cast<const SketchGroup*>(copy(sketch.groups, sketch.group_bytes()));
  CommitCopies();
  return result;
}

// Calls `write(bucket, sum * weight)` for each of this thread's buckets of the share. Several
// buckets at a time, whose gathers are in flight together.
template <typename Entry, int kThreads, typename Write>
__device__ inline void SumBuckets(const float* x, const InputSketch& sketch, Share share,
                                  const Write& write) {
  constexpr Entry kSign = static_cast<Entry>(Entry{1} << (8 * sizeof(Entry) - 1));
  constexpr int kBatch = 4;
  const int stride = share.count * kThreads;
#pragma unroll 1
  for (int index = 0; index < sketch.num_groups; ++index) {
    const SketchGroup group = sketch.groups[index];
    const Entry* columns = static_cast<const Entry*>(sketch.columns) + group.first_column;
#pragma unroll 1
    for (int first = share.index * kThreads + static_cast<int>(threadIdx.x);
         first < group.num_buckets; first += kBatch * stride) {
      const Entry* bucket_columns[kBatch];
      float sums[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        bucket_columns[b] = columns + (first + b * stride) * group.columns_per_bucket;
        sums[b] = 0.0f;
      }
#pragma unroll 1
      for (int i = 0; i < group.columns_per_bucket; ++i) {
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          if (first + b * stride >= group.num_buckets) continue;
          const Entry entry = bucket_columns[b][i];
          const float value = x[entry & static_cast<Entry>(~kSign)];
          sums[b] += (entry & kSign) != 0 ? -value : value;
        }
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int bucket = first + b * stride;
        if (bucket < group.num_buckets) write(group.first_bucket + bucket, sums[b] * group.weight);
      }
    }
  }
}

// Which tables a kernel is made for: of any sketch and none, or only those with entries of 2 bytes.
enum class TableWidth { kAny, kNarrow };

// The same of any sketch, or of the inputs themselves. Returns how many values there are in all.
template <int kThreads, TableWidth kTables, typename Write>
__device__ inline int SumInputs(const float* x, const InputSketch& sketch, Share share,
                                const Write& write) {
  if constexpr (kTables == TableWidth::kAny) {
    if (sketch.num_groups == 0) {
      const int cols = static_cast<int>(sketch.cols);
#pragma unroll 1
      for (int i = share.index * kThreads + static_cast<int>(threadIdx.x); i < cols;
           i += share.count * kThreads) {
        write(i, x[i]);
      }
      return cols;
    }
  }
  if (kTables == TableWidth::kNarrow || sketch.column_bytes == 2) {
    SumBuckets<uint16_t, kThreads>(x, sketch, share, write);
  } else {
    SumBuckets<uint32_t, kThreads>(x, sketch, share, write);
  }
  const SketchGroup last = sketch.groups[sketch.num_groups - 1];
  return last.first_bucket + last.num_buckets;
}

template <int kThreads>
__device__ inline void WriteHalves(const float* x, float gain, float maximum,
                                   const InputSketch& sketch, Share share, uint8_t* row) {
  const PowerOfTwo scale = ScaleToHalfRange(maximum * gain * sketch.max_gain);
  const float factor = gain * scale.factor;
  auto* out = reinterpret_cast<__half*>(row);
  const int used = SumInputs<kThreads, TableWidth::kAny>(
      x, sketch, share,
      [&](int position, float value) { out[position] = __float2half_rn(value * factor); });
  if (share.index != 0) return;
  const int num_values = static_cast<int>(sketch.num_steps) * kStepColumns;
#pragma unroll 1
  for (int i = used + static_cast<int>(threadIdx.x); i < num_values; i += kThreads) {
    out[i] = __float2half_rn(0.0f);
  }
  if (threadIdx.x == 0) {
    *reinterpret_cast<float*>(row + PreparedScaleOffset(sketch.num_steps)) = scale.inverse;
  }
}

template <int kThreads, TableWidth kTables>
__device__ inline void WriteBytePlanes(const float* x, float gain, float maximum,
                                       const InputSketch& sketch, Share share, uint8_t* row) {
  __shared__ int totals[kThreads / 32];
  const float bound = maximum * gain * sketch.max_gain;
  // Up to 2^100: smaller inputs are zero.
  const float scale =
      bound > 0.0f && bound < 3.4e38f ? fminf(kScaledRange / bound, 0x1p100f) : 1.0f;
  const float factor = gain * scale;
  int total = 0;
  bool is_finite = true;
  const int used = SumInputs<kThreads, kTables>(x, sketch, share, [&](int position, float value) {
    const float scaled = value * factor;
    is_finite = is_finite && fabsf(scaled) <= static_cast<float>(kLargestInteger);
    const int integer = __float2int_rn(scaled);
    total += integer;
    const auto low = static_cast<int8_t>(integer);
    const unsigned offset = HighByteOffset(static_cast<unsigned>(position));
    row[offset] = static_cast<uint8_t>((integer - low) >> 8);
    row[offset + kPlaneBytes] = static_cast<uint8_t>(low);
  });
  total = __reduce_add_sync(0xffffffffu, total);
  is_finite = __all_sync(0xffffffffu, is_finite);
  if (threadIdx.x % 32 == 0) totals[threadIdx.x / 32] = is_finite ? total : kNotFinite;
  auto* trailer = reinterpret_cast<PreparedTrailer*>(row + PreparedScaleOffset(sketch.num_steps));
  if (share.index == 0) {
    const int num_values = static_cast<int>(sketch.num_steps) * kStepColumns;
#pragma unroll 1
    for (int i = used + static_cast<int>(threadIdx.x); i < num_values; i += kThreads) {
      const unsigned offset = HighByteOffset(static_cast<unsigned>(i));
      row[offset] = 0;
      row[offset + kPlaneBytes] = 0;
    }
    if (threadIdx.x == 0) trailer->scale = 1.0f / scale;
    if (static_cast<int>(threadIdx.x) >= share.count && threadIdx.x < kMostShares) {
      trailer->totals[threadIdx.x] = 0;
    }
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  int share_total = 0;
#pragma unroll
  for (int warp = 0; warp < kThreads / 32; ++warp) {
    const int warp_total = totals[warp];
    is_finite = is_finite && warp_total != kNotFinite;
    share_total += warp_total;
  }
  trailer->totals[share.index] = is_finite ? share_total : kNotFinite;
}

// Writes the prepared input of `gain` * x. `x` [cols] is in shared memory, complete; `maximum` is
// the largest of its magnitudes. All threads of the block take part, once in a kernel.
template <int kThreads>
__device__ inline void WritePrepared(const float* x, float gain, float maximum,
                                     const InputSketch& sketch, Share share, uint8_t* row) {
  if (sketch.form == PreparedForm::kHalves) {
    WriteHalves<kThreads>(x, gain, maximum, sketch, share, row);
  } else {
    WriteBytePlanes<kThreads, TableWidth::kAny>(x, gain, maximum, sketch, share, row);
  }
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_SKETCH_CUH_
