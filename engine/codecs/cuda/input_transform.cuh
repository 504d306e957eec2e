// Device code that packs (transforms, quantizes) an input in shared memory.
//
// One block holds one token's input: floats in shared memory, in the transform's permuted order
// and with its signs, so that the sums of buckets read neighbours. What puts them there scatters
// them by the scatter indices (about three lanes to a bank). When there are few tokens several
// blocks produce the same input and each writes a split of its buckets: computing it again is
// quicker than on one SM alone.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_INPUT_TRANSFORM_CUH_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_INPUT_TRANSFORM_CUH_

#include <cuda_fp16.h>

#include <cstdint>

#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/input_transform.h"
#include "engine/codecs/cuda/tile_layout.h"

namespace ultrasketch::cuda {

// Part `index` of `count` of the work on one token.
struct InputSplit {
  int index;
  int count;
};

// Begins to copy the transform's tables to shared memory at `staged`, and returns it with its
// tables there, after AwaitTables: for a block's first lines, so that they come while it waits for
// its input. Without room, `staged` null, tables are only asked for: a large model's weights have
// pushed them out of the cache since the step before.
template <int kThreads>
__device__ inline InputTransform LoadTransformTables(const InputTransform& transform,
                                                     uint8_t* staged, InputSplit split) {
  InputTransform result = transform;
  if (transform.num_groups == 0) return result;
  const int thread = static_cast<int>(threadIdx.x);
  if (staged == nullptr) {
    // The blocks of a few tokens see to it for all.
    if (blockIdx.x >= 4) return result;
    const int index = split.index * kThreads + thread;
    PrefetchRange(transform.scatter_indices, transform.table_bytes(), index,
                  split.count * kThreads);
    PrefetchRange(transform.groups, transform.group_bytes(), index, split.count * kThreads);
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
  result.scatter_indices = copy(transform.scatter_indices, transform.table_bytes());
  result.groups =
      static_cast<const TransformGroup*>(copy(transform.groups, transform.group_bytes()));
  CommitCopies();
  return result;
}

__device__ inline void AwaitTables() {
  WaitForCopies<0>();
  __syncthreads();
}

// Scatters a column of an input to where the transform takes it, with its sign.
template <typename Index>
__device__ inline void PutAt(float* x, Index index, float value) {
  constexpr int kSignBit = 8 * sizeof(Index) - 1;
  const uint32_t bits = index;
  const uint32_t sign = bits << (31 - kSignBit) & 0x80000000u;
  x[bits & ~(uint32_t{1} << kSignBit)] = __uint_as_float(__float_as_uint(value) ^ sign);
}
__device__ inline void PutColumns(float* x, const uint2& scatter_indices, const float4& values) {
  PutAt(x, static_cast<uint16_t>(scatter_indices.x), values.x);
  PutAt(x, static_cast<uint16_t>(scatter_indices.x >> 16), values.y);
  PutAt(x, static_cast<uint16_t>(scatter_indices.y), values.z);
  PutAt(x, static_cast<uint16_t>(scatter_indices.y >> 16), values.w);
}
__device__ inline void PutColumns(float* x, const uint4& scatter_indices, const float4& values) {
  PutAt(x, scatter_indices.x, values.x);
  PutAt(x, scatter_indices.y, values.y);
  PutAt(x, scatter_indices.z, values.z);
  PutAt(x, scatter_indices.w, values.w);
}

// Rows of an input in shared memory. `At` loads where column `i` goes, `At4` where it and the next
// three go, for a multiple of four; `Put` puts them there: loads of both come first.
//
// A row of a transform with narrow scatter indices.
struct NarrowRow {
  float* x;
  const uint16_t* scatter_indices;

  __device__ uint16_t At(int i) const { return scatter_indices[i]; }
  __device__ uint2 At4(int i) const {
    return reinterpret_cast<const uint2*>(scatter_indices)[i / 4];
  }
  __device__ void Put(int /*i*/, uint16_t index, float value) const { PutAt(x, index, value); }
  __device__ void Put(int /*i*/, const uint2& at, const float4& values) const {
    PutColumns(x, at, values);
  }
};

// A row in the permuted order already.
struct PermutedRow {
  float* x;
  struct None {};

  __device__ None At(int /*i*/) const { return {}; }
  __device__ None At4(int /*i*/) const { return {}; }
  __device__ void Put(int i, None /*index*/, float value) const { x[i] = value; }
  __device__ void Put(int i, None /*scatter_indices*/, const float4& values) const {
    *reinterpret_cast<float4*>(x + i) = values;
  }
};

// A row of any transform, or of none.
struct TransformedRow {
  float* x;
  const void* scatter_indices;  // null: in the order of columns, or permuted already
  bool is_narrow;

  __device__ TransformedRow(float* x_of, const InputTransform& transform)
      : x(x_of),
        scatter_indices(transform.num_groups > 0 ? transform.scatter_indices : nullptr),
        is_narrow(transform.index_bytes == 2) {}

  __device__ uint32_t At(int i) const {
    if (scatter_indices == nullptr) return 0;
    return is_narrow ? static_cast<const uint16_t*>(scatter_indices)[i]
                     : static_cast<const uint32_t*>(scatter_indices)[i];
  }
  __device__ uint4 At4(int i) const {
    if (scatter_indices == nullptr) return {};
    if (!is_narrow) return static_cast<const uint4*>(scatter_indices)[i / 4];
    const uint2 narrow = static_cast<const uint2*>(scatter_indices)[i / 4];
    return {narrow.x, narrow.y, 0, 0};
  }
  __device__ void Put(int i, uint32_t index, float value) const {
    if (scatter_indices == nullptr) {
      x[i] = value;
    } else if (is_narrow) {
      PutAt(x, static_cast<uint16_t>(index), value);
    } else {
      PutAt(x, index, value);
    }
  }
  __device__ void Put(int i, const uint4& at, const float4& values) const {
    if (scatter_indices == nullptr) {
      *reinterpret_cast<float4*>(x + i) = values;
    } else if (is_narrow) {
      PutColumns(x, uint2{at.x, at.y}, values);
    } else {
      PutColumns(x, at, values);
    }
  }
};

// Four neighbouring positions of a packed input.
inline constexpr int kQuad = 4;
struct QuadValues {
  float values[kQuad];
};

// What the sums of a quad are made of: permuted columns first_permuted + i * stride and the next
// three, for each i below num_columns. None past the last bucket.
struct QuadPlan {
  static constexpr int kMixed = -1;  // as num_columns: the quad is of several groups
  int first_permuted;
  int stride;
  int num_columns;
  float weight;
};

// Which of the groups a bucket is of, for buckets in ascending order.
class GroupCursor {
 public:
  __device__ GroupCursor(const InputTransform& transform, const TransformGroup* groups)
      : group_(transform.first_group),
        end_(group_.first_bucket + group_.num_buckets),
        next_(groups + 1),
        num_left_(transform.num_groups - 1) {}

  // To the group of `bucket`, or the last one.
  __device__ void MoveTo(int bucket) {
#pragma unroll 1
    while (bucket >= end_ && num_left_ > 0) {
      group_ = *next_++;
      end_ = group_.first_bucket + group_.num_buckets;
      --num_left_;
    }
  }
  // The plan of the bucket that it has moved to.
  __device__ QuadPlan PlanOf(int bucket) const {
    return {group_.first_permuted + bucket - group_.first_bucket, group_.num_buckets,
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
  TransformGroup group_;
  int end_;
  const TransformGroup* next_;
  int num_left_;
};

// `take` is called with each column, too.
template <typename Take>
__device__ inline QuadValues SumQuad(const float* x, const QuadPlan& plan, const Take& take) {
  QuadValues sums = {};
  int permuted = plan.first_permuted;
#pragma unroll 2
  for (int i = 0; i < plan.num_columns; ++i) {
    float4 of_column;
    if (permuted % kQuad == 0) {
      of_column = *reinterpret_cast<const float4*>(x + permuted);
    } else {
      of_column = {x[permuted], x[permuted + 1], x[permuted + 2], x[permuted + 3]};
    }
    take(of_column.x);
    take(of_column.y);
    take(of_column.z);
    take(of_column.w);
    sums.values[0] += of_column.x;
    sums.values[1] += of_column.y;
    sums.values[2] += of_column.z;
    sums.values[3] += of_column.w;
    permuted += plan.stride;
  }
  return sums;
}

// A quad of several groups, times their weights.
template <typename Take>
__device__ inline QuadValues SumMixedQuad(const float* x, const InputTransform& transform,
                                          const TransformGroup* groups, int first,
                                          const Take& take) {
  QuadValues sums = {};
  GroupCursor cursor(transform, groups);
#pragma unroll 1
  for (int b = 0; b < kQuad; ++b) {
    cursor.MoveTo(first + b);
    const QuadPlan plan = cursor.PlanOf(first + b);
    float sum = 0.0f;
#pragma unroll 1
    for (int i = 0; i < plan.num_columns; ++i) {
      const float permuted = x[plan.first_permuted + i * plan.stride];
      take(permuted);
      sum += permuted;
    }
#pragma unroll
    for (int i = 0; i < kQuad; ++i) sums.values[i] = i == b ? sum * plan.weight : sums.values[i];
  }
  return sums;
}

// A quad of either kind, to be multiplied by `weight`.
template <typename Take>
__device__ inline QuadValues SumPlannedQuad(const float* x, const InputTransform& transform,
                                            const TransformGroup* groups, int first,
                                            const QuadPlan& plan, float& weight, const Take& take) {
  if (plan.num_columns == QuadPlan::kMixed) {
    weight = 1.0f;
    return SumMixedQuad(x, transform, groups, first, take);
  }
  weight = plan.weight;
  return SumQuad(x, plan, take);
}

template <int kThreads>
__device__ inline int FirstQuad(InputSplit split) {
  return kQuad * (split.index * kThreads + static_cast<int>(threadIdx.x));
}

// Calls `write(position, QuadValues, weight)` for each of this thread's quads of positions of the
// split: the sums of the buckets in order, then zeros, all to be multiplied by the weight. x is in
// the permuted order. `cursor` has planned the thread's first quad, as `plan`: what does not depend
// on x may be computed before it is there. Lanes of a warp make the same number of calls where all
// positions are a multiple of 4 * 32, as those of fold are.
template <int kThreads, typename Write>
__device__ inline void SumBuckets(const float* x, const InputTransform& transform,
                                  const TransformGroup* groups, InputSplit split,
                                  GroupCursor cursor, QuadPlan plan, const Write& write) {
  const int num_positions = static_cast<int>(transform.num_k_tiles) * kKTileColumns;
  int first = FirstQuad<kThreads>(split);
#pragma unroll 1
  while (first < num_positions) {
    const bool is_mixed = plan.num_columns == QuadPlan::kMixed;
    float weight;
    const QuadValues sums =
        SumPlannedQuad(x, transform, groups, first, plan, weight, [](float /*permuted*/) {});
    const int next = first + kQuad * split.count * kThreads;
    if (!is_mixed && next + kQuad <= cursor.end()) {
      plan.first_permuted += next - first;  // of the same group
    } else if (next < num_positions) {
      plan = cursor.PlanQuad(next);
    }
    write(first, sums, weight);
    first = next;
  }
}

// SumBuckets for any transform, or the inputs themselves without one.
template <int kThreads, typename Write>
__device__ inline void SumInputs(const float* x, const InputTransform& transform, InputSplit split,
                                 const Write& write) {
  if (transform.num_groups > 0) {
    GroupCursor cursor(transform, transform.groups);
    const QuadPlan plan = cursor.PlanQuad(FirstQuad<kThreads>(split));
    SumBuckets<kThreads>(x, transform, transform.groups, split, cursor, plan, write);
    return;
  }
  const int num_positions = static_cast<int>(transform.num_k_tiles) * kKTileColumns;
  const int cols = static_cast<int>(transform.cols);
#pragma unroll 1
  for (int i = FirstQuad<kThreads>(split); i < num_positions; i += kQuad * split.count * kThreads) {
    QuadValues quad;
#pragma unroll
    for (int b = 0; b < kQuad; ++b) quad.values[b] = i + b < cols ? x[i + b] : 0.0f;
    write(i, quad, 1.0f);
  }
}

template <int kThreads>
__device__ inline void WriteFp16(const float* x, float inverse_rms, float absmax,
                                 const InputTransform& transform, InputSplit split, uint8_t* row) {
  const PowerOfTwo scale = ScaleToHalfRange(absmax * inverse_rms * transform.max_amplification);
  const float factor = inverse_rms * scale.factor;
  auto* out = reinterpret_cast<__half*>(row);
  SumInputs<kThreads>(x, transform, split, [&](int position, const QuadValues& quad, float weight) {
    weight *= factor;
    *reinterpret_cast<uint2*>(out + position) = {
        PackHalves(quad.values[0] * weight, quad.values[1] * weight),
        PackHalves(quad.values[2] * weight, quad.values[3] * weight)};
  });
  if (split.index == 0 && threadIdx.x == 0) {
    *reinterpret_cast<float*>(row + PackedScaleOffset(transform.num_k_tiles)) = scale.inverse;
  }
}

// What brings buckets of x within 16-bit integers, and its inverse.
struct Int16Scale {
  float factor;
  float inverse;
};

// `bound` is the most that a bucket can be. Of inputs that are zero or not finite: 1.
__device__ inline Int16Scale ScaleToInt16(float bound) {
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

// To all threads of a warp: the sum of their totals, or kNotFinite.
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
__device__ inline void WriteHiLoInt8(const float* x, float inverse_rms, float absmax,
                                     const InputTransform& transform, InputSplit split,
                                     uint8_t* row) {
  __shared__ int totals[kThreads / 32];
  const Int16Scale scale = ScaleToInt16(absmax * transform.max_amplification);
  int total = 0;
  bool is_finite = true;
  SumInputs<kThreads>(x, transform, split, [&](int position, const QuadValues& quad, float weight) {
    uint32_t integers[kQuad];
    ToIntegers(quad, weight * scale.factor, integers, total, is_finite);
    const unsigned offset = HighByteOffset(static_cast<unsigned>(position));
    *reinterpret_cast<uint32_t*>(row + offset + kHiLoBytes) = BytesOf<0>(integers);
    // What is left without the low byte, a signed one.
#pragma unroll
    for (uint32_t& integer : integers) integer += 128;
    *reinterpret_cast<uint32_t*>(row + offset) = BytesOf<1>(integers);
  });
  const int warp_total = WarpTotal(total, is_finite);
  if (threadIdx.x % 32 == 0) totals[threadIdx.x / 32] = warp_total;
  auto* trailer = reinterpret_cast<InputTrailer*>(row + PackedScaleOffset(transform.num_k_tiles));
  if (split.index == 0) {
    if (threadIdx.x == 0) trailer->scale = inverse_rms * scale.inverse;
    if (static_cast<int>(threadIdx.x) >= split.count && threadIdx.x < kMaxInputSplits) {
      trailer->totals[threadIdx.x] = 0;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) trailer->totals[split.index] = AddTotals(totals);
}

// Writes the packed input of `inverse_rms` * x. x is in shared memory as TransformedRow puts it,
// complete; `absmax` is that of x. All threads of the block take part, once in a kernel.
template <int kThreads>
__device__ inline void WritePackedInput(const float* x, float inverse_rms, float absmax,
                                        const InputTransform& transform, InputSplit split,
                                        uint8_t* row) {
  if (transform.form == InputForm::kFp16) {
    WriteFp16<kThreads>(x, inverse_rms, absmax, transform, split, row);
  } else {
    WriteHiLoInt8<kThreads>(x, inverse_rms, absmax, transform, split, row);
  }
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_INPUT_TRANSFORM_CUH_
