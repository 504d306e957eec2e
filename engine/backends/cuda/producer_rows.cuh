// A token's input of a linear site, from what the operation before it left in device memory to
// floats in shared memory. The same to the bit whoever does it: the kernels that only prepare
// inputs, or those that multiply with them right after (fused_product.cu). By all kThreads threads
// of a block, for which x [cols] is complete when they return; and so is what they began to copy to
// shared memory before.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_PRODUCER_ROWS_CUH_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_PRODUCER_ROWS_CUH_

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "engine/backends/cuda/attention_merge.cuh"
#include "engine/backends/cuda/kernels.h"
#include "engine/codecs/cuda/device_code.cuh"

namespace ultrasketch::cuda {

// The input is gain * x; `maximum` is the largest magnitude of x.
struct RowRange {
  float gain;
  float maximum;
};

__device__ inline float4 Load4(const float* values, int i) {
  return *reinterpret_cast<const float4*>(values + i);
}

// Calls `use(batch, i, load(i))` for this thread's columns i, four neighbours at a time where that
// is how rows are aligned: `load4` returns what is loaded of four, `load` of one. The loads of a
// batch of kBatch are in flight together. Column i is of batch member (i / kVector / kThreads) %
// kBatch.
template <int kThreads, typename Load4Function, typename Use4, typename Load, typename Use>
__device__ inline void ForColumns(int cols, const Load4Function& load4, const Use4& use4,
                                  const Load& load, const Use& use) {
  constexpr int kBatch = 4;
  const auto for_vectors = [&](int width, const auto& load_one, const auto& use_one) {
#pragma unroll 1
    for (int first = static_cast<int>(threadIdx.x) * width; first < cols;
         first += kBatch * kThreads * width) {
      decltype(load_one(0)) loaded[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int i = first + b * kThreads * width;
        if (i < cols) loaded[b] = load_one(i);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int i = first + b * kThreads * width;
        if (i < cols) use_one(b, i, loaded[b]);
      }
    }
  };
  if (cols % 4 == 0) {
    for_vectors(4, load4, use4);
  } else {
    for_vectors(1, load, use);
  }
}

// The values of a column, or of four, in two rows.
template <typename T>
struct ColumnPair {
  T first;
  T second;
};

// x = value(first[i], second[i]), called with the member of the batch.
template <int kThreads, typename Value>
__device__ inline void CombineRows(const float* first, const float* second, int cols, float* x,
                                   const Value& value) {
  ForColumns<kThreads>(
      cols,
      [&](int i) {
        return ColumnPair<float4>{Load4(first, i), Load4(second, i)};
      },
      [&](int b, int i, const ColumnPair<float4>& pair) {
        *reinterpret_cast<float4*>(x + i) = {
            value(b, pair.first.x, pair.second.x), value(b, pair.first.y, pair.second.y),
            value(b, pair.first.z, pair.second.z), value(b, pair.first.w, pair.second.w)};
      },
      [&](int i) {
        return ColumnPair<float>{first[i], second[i]};
      },
      [&](int b, int i, const ColumnPair<float>& pair) {
        x[i] = value(b, pair.first, pair.second);
      });
}

// x = source * weight; gain = 1 / rms(source). Squares are summed as kOrder threads do.
template <int kThreads>
__device__ inline RowRange LoadNormalized(const float* source, const float* weight, int cols,
                                          float epsilon, float* x) {
  constexpr int kOrder = 512;
  constexpr int kParts = kOrder / kThreads;
  float squares[kParts] = {};
  float maximum = 0.0f;
  CombineRows<kThreads>(source, weight, cols, x, [&](int b, float value, float weight_value) {
    const float weighted = value * weight_value;
    squares[b % kParts] = __fmaf_rn(value, value, squares[b % kParts]);
    maximum = fmaxf(maximum, fabsf(weighted));
    return weighted;
  });
  WaitForCopies<0>();
  const SumAndMax row = BlockSumAndMax<kThreads>(squares, maximum);
  return {1.0f / sqrtf(row.sum / static_cast<float>(cols) + epsilon), row.maximum};
}

// x = silu(gate) * up.
template <int kThreads>
__device__ inline RowRange LoadSwiGlu(const float* gate, const float* up, int cols, float* x) {
  float maximum = 0.0f;
  CombineRows<kThreads>(gate, up, cols, x, [&](int /*b*/, float gate_value, float up_value) {
    const float value = SwiGluValue(gate_value, up_value);
    maximum = fmaxf(maximum, fabsf(value));
    return value;
  });
  WaitForCopies<0>();
  return {1.0f, BlockMax<kThreads>(maximum)};
}

// x = source.
template <int kThreads>
__device__ inline RowRange LoadRow(const float* source, int cols, float* x) {
  float maximum = 0.0f;
  const auto take = [&](float value) {
    maximum = fmaxf(maximum, fabsf(value));
    return value;
  };
  ForColumns<kThreads>(
      cols, [&](int i) { return Load4(source, i); },
      [&](int /*b*/, int i, const float4& values) {
        *reinterpret_cast<float4*>(x + i) = {take(values.x), take(values.y), take(values.z),
                                             take(values.w)};
      },
      [&](int i) { return source[i]; }, [&](int /*b*/, int i, float value) { x[i] = take(value); });
  WaitForCopies<0>();
  return {1.0f, BlockMax<kThreads>(maximum)};
}

// x = a token's attention: its chunks merged, or what is in `attended` [query_width].
template <int kThreads>
__device__ inline RowRange LoadAttention(const AttentionArguments& arguments,
                                         const AttentionToken& token, const float* attended,
                                         float* x) {
  const AttentionGeometry& geometry = arguments.geometry;
  const int head_dim = geometry.head_dim;
  if (token.num_chunks == 0) {
    return LoadRow<kThreads>(attended, static_cast<int>(geometry.query_width()), x);
  }
  // Head dimensions are even, so that a pair of columns is of one head. Loads of several pairs are
  // in flight at a time.
  constexpr int kPairs = 4;
  const int num_pairs = static_cast<int>(geometry.query_width() / 2);
  const int heads_per_group = geometry.heads_per_group();
  const int heads_per_tile = geometry.heads_per_tile();
  const int tiles_per_group = geometry.tiles_per_group();
  const int chunk_pairs = static_cast<int>(geometry.partial_floats() / 2);
  const auto* const partials = reinterpret_cast<const float2*>(
      arguments.partials + token.first_slot * geometry.partial_floats());
  float largest = 0.0f;
#pragma unroll 1
  for (int first = static_cast<int>(threadIdx.x); first < num_pairs; first += kPairs * kThreads) {
    int range_offset[kPairs];  // of maximum and sum; the values follow
    int value_offset[kPairs];
    float maximum[kPairs];
    float sum[kPairs];
    float2 value[kPairs];
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int column = 2 * min(first + p * kThreads, num_pairs - 1);
      const int head = column / head_dim;
      const int group = head / heads_per_group;
      const int in_group = head - group * heads_per_group;
      const int tile = in_group / heads_per_tile;
      const int row = token.tile_token * heads_per_tile + in_group - tile * heads_per_tile;
      range_offset[p] =
          ((group * tiles_per_group + tile) * kAttentionRows + row) * (head_dim / 2 + 1);
      value_offset[p] = range_offset[p] + 1 + (column - head * head_dim) / 2;
      maximum[p] = -INFINITY;
      sum[p] = 0.0f;
      value[p] = {0.0f, 0.0f};
    }
    const float2* chunk_partials = partials;
#pragma unroll 1
    for (int chunk = 0; chunk < token.num_chunks; ++chunk) {
      float2 range[kPairs];
      float2 added[kPairs];
#pragma unroll
      for (int p = 0; p < kPairs; ++p) {
        range[p] = chunk_partials[range_offset[p]];
        added[p] = chunk_partials[value_offset[p]];
      }
      chunk_partials += chunk_pairs;
#pragma unroll
      for (int p = 0; p < kPairs; ++p) {
        const MergeWeights merge = WeighMerge(maximum[p], range[p].x);
        maximum[p] = merge.maximum;
        sum[p] = Merge(sum[p], range[p].y, merge);
        value[p] = {Merge(value[p].x, added[p].x, merge), Merge(value[p].y, added[p].y, merge)};
      }
    }
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int pair = first + p * kThreads;
      if (pair >= num_pairs) break;
      const float inverse = InverseSum(sum[p]);
      const float2 result = {__fmul_rn(value[p].x, inverse), __fmul_rn(value[p].y, inverse)};
      largest = fmaxf(largest, fmaxf(fabsf(result.x), fabsf(result.y)));
      *reinterpret_cast<float2*>(x + 2 * pair) = result;
    }
  }
  WaitForCopies<0>();
  return {1.0f, BlockMax<kThreads>(largest)};
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_PRODUCER_ROWS_CUH_
