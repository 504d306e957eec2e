// A token's input of a linear site, from what the operation before it left in device memory to
// floats in shared memory, where a `Row` (input_transform.cuh) puts its columns. The same to the
// bit whoever does it: the kernels that only pack inputs, or those that multiply with them right
// after (fused_product.cuh). By all kThreads threads of a block, for which the row is complete when
// they return; and so is what they began to copy to shared memory before.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_INPUT_ROWS_CUH_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_INPUT_ROWS_CUH_

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "engine/backends/cuda/attention_merge.cuh"
#include "engine/backends/cuda/kernels.h"
#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/input_transform.cuh"

namespace ultrasketch::cuda {

// The input is inverse_rms * x; `absmax` is that of x.
struct RowRange {
  float inverse_rms;
  float absmax;
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

// The values of a column, or of four, in two rows, and where they go.
template <typename T, typename Place>
struct ColumnPair {
  T first;
  T second;
  Place place;
};

// row[i] = value(first[i], second[i]), called with the member of the batch.
template <int kThreads, typename Row, typename Value>
__device__ inline void CombineRows(const float* first, const float* second, int cols,
                                   const Row& row, const Value& value) {
  ForColumns<kThreads>(
      cols,
      [&](int i) {
        return ColumnPair<float4, decltype(row.At4(i))>{Load4(first, i), Load4(second, i),
                                                        row.At4(i)};
      },
      [&](int b, int i, const auto& pair) {
        row.Put(
            i, pair.place,
            float4{value(b, pair.first.x, pair.second.x), value(b, pair.first.y, pair.second.y),
                   value(b, pair.first.z, pair.second.z), value(b, pair.first.w, pair.second.w)});
      },
      [&](int i) {
        return ColumnPair<float, decltype(row.At(i))>{first[i], second[i], row.At(i)};
      },
      [&](int b, int i, const auto& pair) {
        row.Put(i, pair.place, value(b, pair.first, pair.second));
      });
}

// The inverse RMS of a row, of squares that are summed as kOrder
// threads do.
template <int kThreads>
struct SquaresOf {
  static constexpr int kOrder = 512;
  static constexpr int kParts = kOrder / kThreads;
  using Sum = BlockSum<kThreads, kParts>;

  static __device__ float InverseRmsOf(const Sum& sum, int cols, float epsilon) {
    return rsqrtf(__fdividef(sum.Sum(), static_cast<float>(cols)) + epsilon);
  }

  float of_thread[kParts];
};

// row = source * weight. Returns this thread's absmax of it.
template <int kThreads, typename Row>
__device__ inline float LoadWeighted(const float* source, const float* weight, int cols,
                                     const Row& row, SquaresOf<kThreads>& squares) {
  float absmax = 0.0f;
  CombineRows<kThreads>(source, weight, cols, row, [&](int b, float value, float weight_value) {
    const float weighted = value * weight_value;
    float& sum = squares.of_thread[b % SquaresOf<kThreads>::kParts];
    sum = __fmaf_rn(value, value, sum);
    absmax = fmaxf(absmax, fabsf(weighted));
    return weighted;
  });
  return absmax;
}

// row = source * weight, with its inverse RMS.
template <int kThreads, typename Row>
__device__ inline RowRange LoadNormalized(const float* source, const float* weight, int cols,
                                          float epsilon, const Row& row) {
  using Squares = SquaresOf<kThreads>;
  __shared__ typename Squares::Sum sum;
  Squares squares = {};
  const float absmax = LoadWeighted<kThreads>(source, weight, cols, row, squares);
  sum.Give(squares.of_thread);
  const float of_block = BlockMax<kThreads>(absmax);
  return {Squares::InverseRmsOf(sum, cols, epsilon), of_block};
}

// row = silu(gate) * up.
template <int kThreads, typename Row>
__device__ inline RowRange LoadSwiGlu(const float* gate, const float* up, int cols,
                                      const Row& row) {
  float absmax = 0.0f;
  CombineRows<kThreads>(gate, up, cols, row, [&](int /*b*/, float gate_value, float up_value) {
    const float value = SwiGluValue(gate_value, up_value);
    absmax = fmaxf(absmax, fabsf(value));
    return value;
  });
  return {1.0f, BlockMax<kThreads>(absmax)};
}

// The values of a column, or of four, and where they go.
template <typename T, typename Place>
struct PlacedColumn {
  T values;
  Place place;
};

// row = source.
template <int kThreads, typename Row>
__device__ inline RowRange LoadRow(const float* source, int cols, const Row& row) {
  float absmax = 0.0f;
  const auto take = [&](float value) { absmax = fmaxf(absmax, fabsf(value)); };
  ForColumns<kThreads>(
      cols,
      [&](int i) {
        return PlacedColumn<float4, decltype(row.At4(i))>{Load4(source, i), row.At4(i)};
      },
      [&](int /*b*/, int i, const auto& loaded) {
        take(loaded.values.x);
        take(loaded.values.y);
        take(loaded.values.z);
        take(loaded.values.w);
        row.Put(i, loaded.place, loaded.values);
      },
      [&](int i) {
        return PlacedColumn<float, decltype(row.At(i))>{source[i], row.At(i)};
      },
      [&](int /*b*/, int i, const auto& loaded) {
        take(loaded.values);
        row.Put(i, loaded.place, loaded.values);
      });
  return {1.0f, BlockMax<kThreads>(absmax)};
}

__device__ inline float2 Merge(const float2& before, const float2& added,
                               const MergeWeights& weights) {
  return {Merge(before.x, added.x, weights), Merge(before.y, added.y, weights)};
}
__device__ inline float4 Merge(const float4& before, const float4& added,
                               const MergeWeights& weights) {
  return {Merge(before.x, added.x, weights), Merge(before.y, added.y, weights),
          Merge(before.z, added.z, weights), Merge(before.w, added.w, weights)};
}
__device__ inline float2 Scaled(const float2& values, float factor) {
  return {__fmul_rn(values.x, factor), __fmul_rn(values.y, factor)};
}
__device__ inline float4 Scaled(const float4& values, float factor) {
  return {__fmul_rn(values.x, factor), __fmul_rn(values.y, factor), __fmul_rn(values.z, factor),
          __fmul_rn(values.w, factor)};
}
__device__ inline float AbsMax(const float2& values) {
  return fmaxf(fabsf(values.x), fabsf(values.y));
}
__device__ inline float AbsMax(const float4& values) {
  return fmaxf(fmaxf(fabsf(values.x), fabsf(values.y)), fmaxf(fabsf(values.z), fabsf(values.w)));
}

__device__ inline void PutVector(const auto& row, int i, const float2& values) {
  row.Put(i, row.At(i), values.x);
  row.Put(i + 1, row.At(i + 1), values.y);
}
__device__ inline void PutVector(const auto& row, int i, const float4& values) {
  row.Put(i, row.At4(i), values);
}

// Where a thread finds its vectors of kWidth columns of a token's KV splits: what does not depend
// on the kernels before, in floats from the first KV split's on.
template <int kThreads, int kWidth>
struct SplitColumns {
  static constexpr int kBatch = 8 / kWidth;  // that are loaded together

  int values[kBatch];
  int ranges[kBatch];

  // For columns `first`, `first` + kThreads * kWidth and so on; those past the last repeat it.
  __device__ SplitColumns(const AttentionGeometry& geometry, const PartialLayout& layout,
                          int tile_token, int first) {
    const int width = static_cast<int>(geometry.query_width());
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int column = min(first + b * kThreads * kWidth, width - kWidth);
      values[b] = tile_token * width + column;
      ranges[b] = layout.RangeOffset(tile_token * geometry.num_heads + column / geometry.head_dim);
    }
  }
};

// row = a token's KV splits merged, `Vector` (float2 or float4) columns of a head at a time. Loads
// of several vectors and of kSplits KV splits are in flight together. `columns` are those of the
// thread's first vectors.
template <int kThreads, int kSplits, typename Vector, typename Row>
__device__ inline RowRange MergeSplits(
    const AttentionArguments& arguments, const PartialLayout& layout, const AttentionToken& token,
    SplitColumns<kThreads, sizeof(Vector) / sizeof(float)> columns, const Row& row) {
  constexpr int kWidth = sizeof(Vector) / sizeof(float);
  constexpr int kBatch = decltype(columns)::kBatch;
  const int width = static_cast<int>(arguments.geometry.query_width());
  const float* const partials =
      arguments.partials + int64_t{token.first_slot} * layout.split_floats;
  int first = static_cast<int>(threadIdx.x) * kWidth;
  float absmax = 0.0f;
#pragma unroll 1
  while (first < width) {
    float maximum[kBatch];
    float sum[kBatch];
    Vector merged[kBatch] = {};
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      maximum[b] = -INFINITY;
      sum[b] = 0.0f;
    }
#pragma unroll 1
    for (int split = 0; split < token.num_splits; split += kSplits) {
      const float* const of_split = partials + int64_t{split} * layout.split_floats;
      float2 range[kSplits][kBatch];
      Vector added[kSplits][kBatch];
#pragma unroll
      for (int c = 0; c < kSplits; ++c) {
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          if (c > 0 && split + c >= token.num_splits) continue;
          range[c][b] = *reinterpret_cast<const float2*>(of_split + c * layout.split_floats +
                                                         columns.ranges[b]);
          added[c][b] = *reinterpret_cast<const Vector*>(of_split + c * layout.split_floats +
                                                         columns.values[b]);
        }
      }
#pragma unroll
      for (int c = 0; c < kSplits; ++c) {
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          if (c > 0 && split + c >= token.num_splits) continue;
          const MergeWeights merge = WeighMerge(maximum[b], range[c][b].x);
          maximum[b] = merge.maximum;
          sum[b] = Merge(sum[b], range[c][b].y, merge);
          merged[b] = Merge(merged[b], added[c][b], merge);
        }
      }
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int column = first + b * kThreads * kWidth;
      if (column >= width) break;
      const Vector result = Scaled(merged[b], InverseSum(sum[b]));
      absmax = fmaxf(absmax, AbsMax(result));
      PutVector(row, column, result);
    }
    first += kBatch * kThreads * kWidth;
    if (first < width) columns = {arguments.geometry, layout, token.tile_token, first};
  }
  return {1.0f, BlockMax<kThreads>(absmax)};
}

// row = a token's attention: its KV splits merged, or what is in `attended` [query_width].
template <int kThreads, int kSplits = 2, typename Row>
__device__ inline RowRange LoadAttention(const AttentionArguments& arguments,
                                         const PartialLayout& layout, const AttentionToken& token,
                                         const float* attended, const Row& row) {
  const AttentionGeometry& geometry = arguments.geometry;
  if (token.num_splits == 0) {
    return LoadRow<kThreads>(attended, static_cast<int>(geometry.query_width()), row);
  }
  // Head dimensions are even.
  const auto merge = [&]<typename Vector>() {
    constexpr int kWidth = sizeof(Vector) / sizeof(float);
    const SplitColumns<kThreads, kWidth> columns(geometry, layout, token.tile_token,
                                                 static_cast<int>(threadIdx.x) * kWidth);
    return MergeSplits<kThreads, kSplits, Vector>(arguments, layout, token, columns, row);
  };
  return geometry.head_dim % 4 == 0 ? merge.template operator()<float4>()
                                    : merge.template operator()<float2>();
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_INPUT_ROWS_CUH_
