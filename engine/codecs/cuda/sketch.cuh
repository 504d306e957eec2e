// Device code that turns an input in shared memory into a prepared input.
//
// One block holds one token's input: floats in shared memory, in the order of the sketch's entries
// and with their signs, so that the sums of buckets read neighbours. What puts them there scatters
// them by the columns' places (about three lanes to a bank). When there are few tokens several
// blocks produce the same input and each writes a share of its buckets: computing it again is
// quicker than one multiprocessor alone.
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
// tables there, after AwaitTables: for a block's first lines, so that they come while it waits for
// its input. Without room, `staged` null, tables are only asked for: a large model's weights have
// pushed them out of the cache since the step before.
template <int kThreads>
__device__ inline InputSketch StageSketch(const InputSketch& sketch, uint8_t* staged, Share share) {
  InputSketch result = sketch;
  if (sketch.num_groups == 0) return result;
  const int thread = static_cast<int>(threadIdx.x);
  if (staged == nullptr) {
    // The blocks of a few tokens see to it for all.
    if (blockIdx.x >= 4) return result;
    const int index = share.index * kThreads + thread;
    PrefetchRange(sketch.places, sketch.table_bytes(), index, share.count * kThreads);
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
  result.places = copy(sketch.places, sketch.table_bytes());
  result.groups = static_cast<const SketchGroup*>(copy(sketch.groups, sketch.group_bytes()));
  CommitCopies();
  return result;
}

__device__ inline void AwaitTables() {
  WaitForCopies<0>();
  __syncthreads();
}

// Puts a column of an input where the sketch takes it, with its sign.
template <typename Place>
__device__ inline void PutAt(float* x, Place place, float value) {
  constexpr int kSignBit = 8 * sizeof(Place) - 1;
  const uint32_t bits = place;
  const uint32_t sign = bits << (31 - kSignBit) & 0x80000000u;
  x[bits & ~(uint32_t{1} << kSignBit)] = __uint_as_float(__float_as_uint(value) ^ sign);
}
__device__ inline void PutColumns(float* x, const uint2& places, const float4& values) {
  PutAt(x, static_cast<uint16_t>(places.x), values.x);
  PutAt(x, static_cast<uint16_t>(places.x >> 16), values.y);
  PutAt(x, static_cast<uint16_t>(places.y), values.z);
  PutAt(x, static_cast<uint16_t>(places.y >> 16), values.w);
}
__device__ inline void PutColumns(float* x, const uint4& places, const float4& values) {
  PutAt(x, places.x, values.x);
  PutAt(x, places.y, values.y);
  PutAt(x, places.z, values.z);
  PutAt(x, places.w, values.w);
}

// Rows of an input in shared memory. `At` loads where column `i` goes, `At4` where it and the next
// three go, for a multiple of four; `Put` puts them there: loads of both come first.
//
// Of narrow places.
struct NarrowRow {
  float* x;
  const uint16_t* places;

  __device__ uint16_t At(int i) const { return places[i]; }
  __device__ uint2 At4(int i) const { return reinterpret_cast<const uint2*>(places)[i / 4]; }
  __device__ void Put(int /*i*/, uint16_t place, float value) const { PutAt(x, place, value); }
  __device__ void Put(int /*i*/, const uint2& at, const float4& values) const {
    PutColumns(x, at, values);
  }
};

// In the order of entries already.
struct EntryRow {
  float* x;
  struct None {};

  __device__ None At(int /*i*/) const { return {}; }
  __device__ None At4(int /*i*/) const { return {}; }
  __device__ void Put(int i, None /*place*/, float value) const { x[i] = value; }
  __device__ void Put(int i, None /*places*/, const float4& values) const {
    *reinterpret_cast<float4*>(x + i) = values;
  }
};

// Of any sketch, or of none.
struct SketchedRow {
  float* x;
  const void* places;  // null: in the order of columns, or of entries already
  bool is_narrow;

  __device__ SketchedRow(float* x_of, const InputSketch& sketch)
      : x(x_of),
        places(sketch.num_groups > 0 ? sketch.places : nullptr),
        is_narrow(sketch.place_bytes == 2) {}

  __device__ uint32_t At(int i) const {
    if (places == nullptr) return 0;
    return is_narrow ? static_cast<const uint16_t*>(places)[i]
                     : static_cast<const uint32_t*>(places)[i];
  }
  __device__ uint4 At4(int i) const {
    if (places == nullptr) return {};
    if (!is_narrow) return static_cast<const uint4*>(places)[i / 4];
    const uint2 narrow = static_cast<const uint2*>(places)[i / 4];
    return {narrow.x, narrow.y, 0, 0};
  }
  __device__ void Put(int i, uint32_t place, float value) const {
    if (places == nullptr) {
      x[i] = value;
    } else if (is_narrow) {
      PutAt(x, static_cast<uint16_t>(place), value);
    } else {
      PutAt(x, place, value);
    }
  }
  __device__ void Put(int i, const uint4& at, const float4& values) const {
    if (places == nullptr) {
      *reinterpret_cast<float4*>(x + i) = values;
    } else if (is_narrow) {
      PutColumns(x, uint2{at.x, at.y}, values);
    } else {
      PutColumns(x, at, values);
    }
  }
};

// Four neighbouring positions of a prepared input.
inline constexpr int kQuad = 4;
struct QuadValues {
  float values[kQuad];
};

// What the sums of a quad are made of: entries first_entry + i * stride and the next three, for
// each i below num_columns. None past the last bucket.
struct QuadPlan {
  static constexpr int kMixed = -1;  // as num_columns: the quad is of several groups
  int first_entry;
  int stride;
  int num_columns;
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
    return {group_.first_entry + bucket - group_.first_bucket, group_.num_buckets,
            bucket < end_ ? group_.columns_per_bucket : 0, group_.weight};
  }
  __device__ int end() const { return end_; }  // of the group's buckets
  __device__ QuadPlan PlanQuad(int first) {
    MoveTo(first);
    QuadPlan plan = PlanOf(first);
    if (first < end_ && first + kQuad > end_) plan.num_columns = QuadPlan::kMixed;
    return plan;
  }

 private:
  SketchGroup group_;
  int end_;
  const SketchGroup* next_;
  int num_left_;
};

// `take` is called with each entry, too.
template <typename Take>
__device__ inline QuadValues SumQuad(const float* x, const QuadPlan& plan, const Take& take) {
  QuadValues sums = {};
  int entry = plan.first_entry;
#pragma unroll 2
  for (int i = 0; i < plan.num_columns; ++i) {
    float4 of_column;
    if (entry % kQuad == 0) {
      of_column = *reinterpret_cast<const float4*>(x + entry);
    } else {
      of_column = {x[entry], x[entry + 1], x[entry + 2], x[entry + 3]};
    }
    take(of_column.x);
    take(of_column.y);
    take(of_column.z);
    take(of_column.w);
    sums.values[0] += of_column.x;
    sums.values[1] += of_column.y;
    sums.values[2] += of_column.z;
    sums.values[3] += of_column.w;
    entry += plan.stride;
  }
  return sums;
}

// A quad of several groups, times their weights.
template <typename Take>
__device__ inline QuadValues SumMixedQuad(const float* x, const InputSketch& sketch,
                                          const SketchGroup* groups, int first, const Take& take) {
  QuadValues sums = {};
  GroupCursor cursor(sketch, groups);
#pragma unroll 1
  for (int b = 0; b < kQuad; ++b) {
    cursor.MoveTo(first + b);
    const QuadPlan plan = cursor.PlanOf(first + b);
    float sum = 0.0f;
#pragma unroll 1
    for (int i = 0; i < plan.num_columns; ++i) {
      const float entry = x[plan.first_entry + i * plan.stride];
      take(entry);
      sum += entry;
    }
#pragma unroll
    for (int i = 0; i < kQuad; ++i) sums.values[i] = i == b ? sum * plan.weight : sums.values[i];
  }
  return sums;
}

// Of either kind, to be multiplied by `weight`.
template <typename Take>
__device__ inline QuadValues SumPlannedQuad(const float* x, const InputSketch& sketch,
                                            const SketchGroup* groups, int first,
                                            const QuadPlan& plan, float& weight, const Take& take) {
  if (plan.num_columns == QuadPlan::kMixed) {
    weight = 1.0f;
    return SumMixedQuad(x, sketch, groups, first, take);
  }
  weight = plan.weight;
  return SumQuad(x, plan, take);
}

template <int kThreads>
__device__ inline int FirstQuad(Share share) {
  return kQuad * (share.index * kThreads + static_cast<int>(threadIdx.x));
}

// Calls `write(position, QuadValues, weight)` for each of this thread's quads of positions of the
// share: the sums of the buckets in order, then zeros, all to be multiplied by the weight. x is in
// the order of entries. `cursor` has planned the thread's first quad, as `plan`: what does not
// depend on x may be reckoned before it is there. Lanes of a warp make the same number of calls
// where all positions are a multiple of 4 * 32, as those of fold are.
template <int kThreads, typename Write>
__device__ inline void SumBuckets(const float* x, const InputSketch& sketch,
                                  const SketchGroup* groups, Share share, GroupCursor cursor,
                                  QuadPlan plan, const Write& write) {
  const int num_positions = static_cast<int>(sketch.num_steps) * kStepColumns;
  int first = FirstQuad<kThreads>(share);
#pragma unroll 1
  while (first < num_positions) {
    const bool is_mixed = plan.num_columns == QuadPlan::kMixed;
    float weight;
    const QuadValues sums =
        SumPlannedQuad(x, sketch, groups, first, plan, weight, [](float /*entry*/) {});
    const int next = first + kQuad * share.count * kThreads;
    if (!is_mixed && next + kQuad <= cursor.end()) {
      plan.first_entry += next - first;  // of the same group
    } else if (next < num_positions) {
      plan = cursor.PlanQuad(next);
    }
    write(first, sums, weight);
    first = next;
  }
}

// The same of any sketch, or of the inputs themselves.
template <int kThreads, typename Write>
__device__ inline void SumInputs(const float* x, const InputSketch& sketch, Share share,
                                 const Write& write) {
  if (sketch.num_groups > 0) {
    GroupCursor cursor(sketch, sketch.groups);
    const QuadPlan plan = cursor.PlanQuad(FirstQuad<kThreads>(share));
    SumBuckets<kThreads>(x, sketch, sketch.groups, share, cursor, plan, write);
    return;
  }
  const int num_positions = static_cast<int>(sketch.num_steps) * kStepColumns;
  const int cols = static_cast<int>(sketch.cols);
#pragma unroll 1
  for (int i = FirstQuad<kThreads>(share); i < num_positions; i += kQuad * share.count * kThreads) {
    QuadValues quad;
#pragma unroll
    for (int b = 0; b < kQuad; ++b) quad.values[b] = i + b < cols ? x[i + b] : 0.0f;
    write(i, quad, 1.0f);
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

// A quad's integers of 16 bits. Adds them to `total`; `is_finite` stays true if all are.
__device__ inline void ToIntegers(const QuadValues& quad, float factor, uint32_t (&integers)[kQuad],
                                  int& total, bool& is_finite) {
#pragma unroll
  for (int b = 0; b < kQuad; ++b) {
    const float scaled = __fmul_rn(quad.values[b], factor);
    is_finite = is_finite && fabsf(scaled) <= static_cast<float>(kLargestInteger);
    const int integer = RoundToInteger(scaled);
    total += integer;
    integers[b] = static_cast<uint32_t>(integer);
  }
}

// Of a warp's threads, to all of them: what their totals are together, or kNotFinite.
__device__ inline int WarpTotal(int total, bool is_finite) {
  total = __reduce_add_sync(0xffffffffu, total);
  return __all_sync(0xffffffffu, is_finite) ? total : kNotFinite;
}

template <int kCount>
__device__ inline int AddTotals(const int (&totals)[kCount]) {
  unsigned sum = 0;
  bool is_finite = true;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    is_finite = is_finite && totals[i] != kNotFinite;
    sum += static_cast<unsigned>(totals[i]);
  }
  return is_finite ? static_cast<int>(sum) : kNotFinite;
}

template <int kThreads>
__device__ inline void WriteBytePlanes(const float* x, float gain, float maximum,
                                       const InputSketch& sketch, Share share, uint8_t* row) {
  __shared__ int totals[kThreads / 32];
  const PlaneScale scale = ScaleToPlanes(maximum * sketch.max_gain);
  int total = 0;
  bool is_finite = true;
  SumInputs<kThreads>(x, sketch, share, [&](int position, const QuadValues& quad, float weight) {
    uint32_t integers[kQuad];
    ToIntegers(quad, weight * scale.factor, integers, total, is_finite);
    const unsigned offset = HighByteOffset(static_cast<unsigned>(position));
    *reinterpret_cast<uint32_t*>(row + offset + kPlaneBytes) = BytesOf<0>(integers);
    // What is left without the low byte, a signed one.
#pragma unroll
    for (uint32_t& integer : integers) integer += 128;
    *reinterpret_cast<uint32_t*>(row + offset) = BytesOf<1>(integers);
  });
  const int warp_total = WarpTotal(total, is_finite);
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

// Writes the prepared input of `gain` * x. x is in shared memory as SketchedRow puts it, complete;
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
