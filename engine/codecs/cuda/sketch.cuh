// Device code that turns an input in shared memory into a prepared input.
//
// One block holds one token's input: cols floats and a zero in shared memory, from which buckets
// gather their columns at random (about three lanes to a bank: some hundred cycles for 4,096
// columns). When there are few tokens several blocks produce the same input and each writes a share
// of its buckets: computing it again is quicker than one multiprocessor gathering alone.
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

// Two columns of the table.
template <typename Entry>
struct alignas(2 * sizeof(Entry)) EntryPair {
  Entry first;
  Entry second;
};

// Column values with their signs.
template <typename Entry>
__device__ inline float SignedColumn(const float* x, Entry entry) {
  constexpr int kSignBit = 8 * sizeof(Entry) - 1;
  const uint32_t bits = entry;
  const uint32_t sign = bits << (31 - kSignBit) & 0x80000000u;
  return __uint_as_float(__float_as_uint(x[bits & ~(uint32_t{1} << kSignBit)]) ^ sign);
}

// Four neighbouring positions of a prepared input.
inline constexpr int kQuad = 4;
struct QuadValues {
  float values[kQuad];
};

// What the sums of a quad are made of: bucket b of the four has the pairs from first_pair + b *
// pairs_per_bucket on. None past the last bucket.
struct QuadPlan {
  static constexpr int kMixed = -1;  // as pairs_per_bucket: the quad is of several groups
  int first_pair;
  int pairs_per_bucket;
  float weight;
};

// Which of the groups a bucket is of, for buckets in ascending order.
class GroupCursor {
 public:
  __device__ GroupCursor(const InputSketch& sketch, const SketchGroup* groups)
      : group_(sketch.first_group),
        end_(group_.first_bucket + group_.num_buckets),
        next_(groups + 1),
        num_left_(sketch.num_groups - 1) {}

  // To the group of `bucket`, or the last one.
  __device__ void MoveTo(int bucket) {
#pragma unroll 1
    while (bucket >= end_ && num_left_ > 0) {
      group_ = *next_++;
      end_ = group_.first_bucket + group_.num_buckets;
      --num_left_;
    }
  }
  // Of the bucket that it has moved to.
  __device__ QuadPlan PlanOf(int bucket) const {
    return {group_.first_pair + (bucket - group_.first_bucket) * group_.pairs_per_bucket,
            bucket < end_ ? group_.pairs_per_bucket : 0, group_.weight};
  }
  __device__ QuadPlan PlanQuad(int first) {
    MoveTo(first);
    QuadPlan plan = PlanOf(first);
    if (first < end_ && first + kQuad > end_) plan.pairs_per_bucket = QuadPlan::kMixed;
    return plan;
  }

 private:
  SketchGroup group_;
  int end_;
  const SketchGroup* next_;
  int num_left_;
};

template <typename Entry>
__device__ inline float AddPair(float sum, const float* x, const EntryPair<Entry>& pair) {
  sum += SignedColumn(x, pair.first);
  return sum + SignedColumn(x, pair.second);
}

template <typename Entry>
__device__ inline QuadValues SumQuad(const float* x, const EntryPair<Entry>* pairs,
                                     const QuadPlan& plan) {
  QuadValues sums = {};
#pragma unroll 1
  for (int p = 0; p < plan.pairs_per_bucket; ++p) {
    EntryPair<Entry> of_bucket[kQuad];
#pragma unroll
    for (int b = 0; b < kQuad; ++b) {
      of_bucket[b] = pairs[plan.first_pair + b * plan.pairs_per_bucket + p];
    }
#pragma unroll
    for (int b = 0; b < kQuad; ++b) sums.values[b] = AddPair(sums.values[b], x, of_bucket[b]);
  }
  return sums;
}

// A quad of several groups, times their weights.
template <typename Entry>
__device__ inline QuadValues SumMixedQuad(const float* x, const InputSketch& sketch,
                                          const EntryPair<Entry>* pairs, const SketchGroup* groups,
                                          int first) {
  QuadValues sums = {};
  GroupCursor cursor(sketch, groups);
#pragma unroll 1
  for (int b = 0; b < kQuad; ++b) {
    cursor.MoveTo(first + b);
    const QuadPlan plan = cursor.PlanOf(first + b);
    float sum = 0.0f;
#pragma unroll 1
    for (int p = 0; p < plan.pairs_per_bucket; ++p) {
      sum = AddPair(sum, x, pairs[plan.first_pair + p]);
    }
#pragma unroll
    for (int i = 0; i < kQuad; ++i) sums.values[i] = i == b ? sum * plan.weight : sums.values[i];
  }
  return sums;
}

template <int kThreads>
__device__ inline int FirstQuad(Share share) {
  return kQuad * (share.index * kThreads + static_cast<int>(threadIdx.x));
}

// Calls `write(position, QuadValues, weight)` for each of this thread's quads of positions of the
// share: the sums of the buckets in order, then zeros, all to be multiplied by the weight. x[cols]
// is zero. `cursor` has planned the thread's first quad, as `plan`: what does not depend on x may
// be reckoned before it is there.
template <typename Entry, int kThreads, typename Write>
__device__ inline void SumBuckets(const float* x, const InputSketch& sketch,
                                  const EntryPair<Entry>* pairs, const SketchGroup* groups,
                                  Share share, GroupCursor cursor, QuadPlan plan,
                                  const Write& write) {
  const int num_positions = static_cast<int>(sketch.num_steps) * kStepColumns;
  int first = FirstQuad<kThreads>(share);
#pragma unroll 1
  while (first < num_positions) {
    const bool is_mixed = plan.pairs_per_bucket == QuadPlan::kMixed;
    const float weight = is_mixed ? 1.0f : plan.weight;
    const QuadValues sums =
        is_mixed ? SumMixedQuad(x, sketch, pairs, groups, first) : SumQuad(x, pairs, plan);
    const int next = first + kQuad * share.count * kThreads;
    if (next < num_positions) plan = cursor.PlanQuad(next);
    write(first, sums, weight);
    first = next;
  }
}

// The same of any sketch, or of the inputs themselves.
template <int kThreads, typename Write>
__device__ inline void SumInputs(const float* x, const InputSketch& sketch, Share share,
                                 const Write& write) {
  const auto sum_buckets = [&]<typename Entry>(const EntryPair<Entry>* pairs) {
    GroupCursor cursor(sketch, sketch.groups);
    const QuadPlan plan = cursor.PlanQuad(FirstQuad<kThreads>(share));
    SumBuckets<Entry, kThreads>(x, sketch, pairs, sketch.groups, share, cursor, plan, write);
  };
  if (sketch.num_groups == 0) {
    const int num_positions = static_cast<int>(sketch.num_steps) * kStepColumns;
    const int cols = static_cast<int>(sketch.cols);
#pragma unroll 1
    for (int i = kQuad * (share.index * kThreads + static_cast<int>(threadIdx.x));
         i < num_positions; i += kQuad * share.count * kThreads) {
      QuadValues quad;
#pragma unroll
      for (int b = 0; b < kQuad; ++b) quad.values[b] = x[min(i + b, cols)];
      write(i, quad, 1.0f);
    }
  } else if (sketch.column_bytes == 2) {
    sum_buckets(static_cast<const EntryPair<uint16_t>*>(sketch.columns));
  } else {
    sum_buckets(static_cast<const EntryPair<uint32_t>*>(sketch.columns));
  }
}

template <int kThreads>
__device__ inline void WriteHalves(const float* x, float gain, float maximum,
                                   const InputSketch& sketch, Share share, uint8_t* row) {
  const PowerOfTwo scale = ScaleToHalfRange(maximum * gain * sketch.max_gain);
  const float factor = gain * scale.factor;
  auto* out = reinterpret_cast<__half*>(row);
  SumInputs<kThreads>(x, sketch, share, [&](int position, const QuadValues& quad, float weight) {
    weight *= factor;
    *reinterpret_cast<uint2*>(out + position) = {
        PackHalves(quad.values[0] * weight, quad.values[1] * weight),
        PackHalves(quad.values[2] * weight, quad.values[3] * weight)};
  });
  if (share.index == 0 && threadIdx.x == 0) {
    *reinterpret_cast<float*>(row + PreparedScaleOffset(sketch.num_steps)) = scale.inverse;
  }
}

// What brings buckets of x within 16-bit integers, and its inverse.
struct PlaneScale {
  float factor;
  float inverse;
};

// `bound` is the most that a bucket can be. Of inputs that are zero or not finite: 1.
__device__ inline PlaneScale ScaleToPlanes(float bound) {
  // Up to 2^100: smaller inputs are zero. The division is by a number whose inverse is neither
  // too large nor too small, whatever the bound.
  constexpr float kLargestFactor = 0x1p100f;
  constexpr float kStep = 0x1p-24f;
  if (!(bound > 0.0f && bound < 3.4e38f)) return {1.0f, 1.0f};
  const float factor = __fdividef(kScaledRange * kStep, bound * kStep);
  if (!(factor < kLargestFactor)) return {kLargestFactor, 1.0f / kLargestFactor};
  return {factor, bound * (1.0f / kScaledRange)};
}

// Four bytes, byte `kByte` of each of the words.
template <int kByte>
__device__ inline uint32_t BytesOf(const uint32_t (&words)[kQuad]) {
  constexpr uint32_t kSelector = kByte | (kByte + 4) << 4;
  return __byte_perm(__byte_perm(words[0], words[1], kSelector),
                     __byte_perm(words[2], words[3], kSelector), 0x5410);
}

// The integers of a thread's positions to their planes of `row`; `sum_inputs(write)` calls
// `write(position, quad, weight)` for each. Returns their total in all of the warp, or kNotFinite.
template <typename SumInputsFunction>
__device__ inline int WritePlanes(float factor, uint8_t* row, const SumInputsFunction& sum_inputs) {
  int total = 0;
  bool is_finite = true;
  sum_inputs([&](int position, const QuadValues& quad, float weight) {
    weight *= factor;
    uint32_t low[kQuad];
    uint32_t high[kQuad];
#pragma unroll
    for (int b = 0; b < kQuad; ++b) {
      const float scaled = quad.values[b] * weight;
      is_finite = is_finite && fabsf(scaled) <= static_cast<float>(kLargestInteger);
      const int integer = RoundToInteger(scaled);
      total += integer;
      low[b] = static_cast<uint32_t>(integer);
      // What is left without the low byte, a signed one.
      high[b] = low[b] + 128;
    }
    const unsigned offset = HighByteOffset(static_cast<unsigned>(position));
    *reinterpret_cast<uint32_t*>(row + offset) = BytesOf<1>(high);
    *reinterpret_cast<uint32_t*>(row + offset + kPlaneBytes) = BytesOf<0>(low);
  });
  total = __reduce_add_sync(0xffffffffu, total);
  return __all_sync(0xffffffffu, is_finite) ? total : kNotFinite;
}

template <int kCount>
__device__ inline int AddTotals(const int (&totals)[kCount]) {
  int sum = 0;
  bool is_finite = true;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    is_finite = is_finite && totals[i] != kNotFinite;
    sum += totals[i];
  }
  return is_finite ? sum : kNotFinite;
}

template <int kThreads>
__device__ inline void WriteBytePlanes(const float* x, float gain, float maximum,
                                       const InputSketch& sketch, Share share, uint8_t* row) {
  __shared__ int totals[kThreads / 32];
  const PlaneScale scale = ScaleToPlanes(maximum * sketch.max_gain);
  const int warp_total = WritePlanes(
      scale.factor, row, [&](const auto& write) { SumInputs<kThreads>(x, sketch, share, write); });
  if (threadIdx.x % 32 == 0) totals[threadIdx.x / 32] = warp_total;
  auto* trailer = reinterpret_cast<PreparedTrailer*>(row + PreparedScaleOffset(sketch.num_steps));
  if (share.index == 0) {
    if (threadIdx.x == 0) trailer->scale = gain * scale.inverse;
    if (static_cast<int>(threadIdx.x) >= share.count && threadIdx.x < kMostShares) {
      trailer->totals[threadIdx.x] = 0;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) trailer->totals[share.index] = AddTotals(totals);
}

// Writes the prepared input of `gain` * x. `x` [cols], then a zero, is in shared memory, complete;
// `maximum` is the largest of its magnitudes. All threads of the block take part, once in a kernel.
template <int kThreads>
__device__ inline void WritePrepared(const float* x, float gain, float maximum,
                                     const InputSketch& sketch, Share share, uint8_t* row) {
  if (sketch.form == PreparedForm::kHalves) {
    WriteHalves<kThreads>(x, gain, maximum, sketch, share, row);
  } else {
    WriteBytePlanes<kThreads>(x, gain, maximum, sketch, share, row);
  }
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_SKETCH_CUH_
