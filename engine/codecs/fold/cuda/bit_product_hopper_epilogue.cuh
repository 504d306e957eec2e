// Outputs of the products of sign bits by wgmma (bit_product_hopper.cuh): sums of a tile in shared
// memory, and the warps that make outputs of them.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_EPILOGUE_CUH_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_EPILOGUE_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/product.cuh"
#include "engine/codecs/cuda/ptx/cluster.cuh"
#include "engine/codecs/cuda/ptx/mbarrier.cuh"
#include "engine/codecs/fold/cuda/bit_product.cuh"
#include "engine/codecs/fold/cuda/bit_product_hopper_shape.cuh"

namespace ultrasketch::cuda::bit_product_hopper {

// Where a tile's accumulators lie: tokens one after the other, each fourth one's rows swizzled so
// that neither the lanes that have them nor those that read neighbouring rows of a token meet in a
// bank.
template <typename Shape>
__device__ inline int AccumulatorIndex(int token, int row) {
  return token * Shape::kRows + (row ^ token % 4 * 8);
}

// A thread's sums to the tile's, from `first_row` of the tile on, as far as FinishBits takes them:
// those of the high and of the low bytes in one, which may be added to others before.
template <typename Shape>
__device__ inline void StoreAccumulators(
    const int (&accumulators)[Shape::kTiles][Shape::kColumns / 2], int first_row, int quad,
    int* tile_accumulators) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int* const out = tile_accumulators + AccumulatorIndex<Shape>(quad, first_row + half * 8);
#pragma unroll
    for (int t = 0; t < Shape::kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < Shape::kTokens / 4; ++i) {
        const unsigned high = static_cast<unsigned>(accumulators[t][4 * i + 2 * half]);
        const unsigned low = static_cast<unsigned>(accumulators[t][4 * i + 2 * half + 1]);
        out[i * 4 * Shape::kRows + t * kWarpgroupRows] = static_cast<int>(high * 256u + low);
      }
    }
  }
}

// Keeps the compiler from working out before a loop what follows from `value` in it, to hold it in
// registers.
__device__ inline int Launder(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// One warp: writes the outputs of every num_epilogue_warps-th token of a tile. Rows are neighbours
// from lane to lane, and kPartRows of a lane are 32 apart; gated, the second half of them are ups
// to the first.
template <typename Shape>
class TileEpilogue {
 public:
  __device__ TileEpilogue(const ProductArguments& arguments, const Grid& grid, int tile,
                          int epilogue_warp, int num_epilogue_warps)
      : arguments_(&arguments),
        is_gated_(grid.is_gated),
        epilogue_warp_(epilogue_warp),
        num_epilogue_warps_(num_epilogue_warps),
        num_outputs_(grid.num_outputs) {
    const int row_block = tile % grid.row_blocks;
    first_token_ = tile / grid.row_blocks * Shape::kTokens;
    num_tokens_ = min(Shape::kTokens, static_cast<int>(arguments.num_tokens) - first_token_);
    first_output_ = row_block * (is_gated_ ? Shape::kRows / 2 : Shape::kRows) +
                    static_cast<int>(threadIdx.x) % 32;
  }

  // Loads what does not depend on the sums: of the rows of the first part,
  __device__ void LoadFactors() { LoadFactors(0); }
  // and of the inputs: lane l has that of the warp's token l.
  __device__ void LoadTotals() {
    const int token = epilogue_warp_ + static_cast<int>(threadIdx.x) % 32 * num_epilogue_warps_;
    own_total_ = {};
    if (token < num_tokens_) own_total_ = SumTotals(TrailerOf(*arguments_, first_token_ + token));
  }

  // From this block's sums, complete.
  __device__ void Write(const int* tile_accumulators) {
#pragma unroll 1
    for (int part = 0; part < kParts; ++part) {
      if (part > 0) LoadFactors(part);
      if (is_gated_) {
        WritePart<true>(tile_accumulators, part);
      } else {
        WritePart<false>(tile_accumulators, part);
      }
    }
  }

  // From those of all blocks of a cluster, which end after it.
  __device__ void WriteSplit(const int* tile_accumulators, int log2_splits) {
    if (log2_splits == 1) {
      WriteSplit<2>(tile_accumulators);
    } else if (log2_splits == 2) {
      WriteSplit<4>(tile_accumulators);
    } else {
      WriteSplit<kMaxSplits>(tile_accumulators);
    }
  }

 private:
  static constexpr int kLaneRows = Shape::kRows / 32;
  static constexpr int kPartRows = std::min(kLaneRows, 4);
  static constexpr int kParts = kLaneRows / kPartRows;

  // The first of the lane's rows of the tile in a part, and of its outputs.
  __device__ int FirstRow(int part) const { return part * (is_gated_ ? kPartRows / 2 : kPartRows); }

  __device__ void LoadFactors(int part) {
    const PackedMatrix& matrix = arguments_->matrix;
    const int first_output = Launder(first_output_ + 32 * FirstRow(part));
#pragma unroll
    for (int i = 0; i < kPartRows; ++i) {
      const bool is_up = is_gated_ && i >= kPartRows / 2;
      const int output = first_output + 32 * (is_up ? i - kPartRows / 2 : i);
      row_scales_[i] = 0.0f;
      biases_[i] = 0.0f;
      if (output >= num_outputs_) continue;
      const int row = is_up ? num_outputs_ + output : output;
      row_scales_[i] = matrix.row_scales[row];
      biases_[i] = BiasOf(matrix, row);
    }
  }

  // The input total of the warp's token `index`.
  __device__ InputTotal TotalOf(int index) const {
    return {__shfl_sync(0xffffffffu, own_total_.scale, index),
            __shfl_sync(0xffffffffu, own_total_.total, index)};
  }

  // Where a token's sums of a part begin: of the first half of the lane's rows, and from there on
  // of the second.
  __device__ int FirstSum(int token, int first_row) const {
    return AccumulatorIndex<Shape>(token, 32 * first_row + static_cast<int>(threadIdx.x) % 32);
  }
  __device__ int SecondSum() const { return is_gated_ ? Shape::kRows / 2 : 32 * (kPartRows / 2); }

  __device__ float* FirstOut(int first_row) const {
    return arguments_->y + int64_t{first_token_ + epilogue_warp_} * num_outputs_ + first_output_ +
           32 * first_row;
  }
  __device__ int64_t OutStride() const { return int64_t{num_epilogue_warps_} * num_outputs_; }

  template <bool kIsGated>
  __device__ void WritePart(const int* tile_accumulators, int part) const {
    // Two tokens at a time, so that instructions of one are under way while those of the other
    // wait.
    constexpr int kAtOnce = 2;
    constexpr int kOutputs = kIsGated ? kPartRows / 2 : kPartRows;
    const int first_row = Launder(FirstRow(part));
    float* out = FirstOut(first_row);
    int index = 0;
#pragma unroll 1
    for (int first = epilogue_warp_; first < num_tokens_; first += kAtOnce * num_epilogue_warps_) {
      float values[kAtOnce][kOutputs];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        // What comes of tokens past the end is dropped.
        const int token = min(first + i * num_epilogue_warps_, Shape::kTokens - 1);
        const int* first_sum = tile_accumulators + FirstSum(token, first_row);
        const int* second_sum = first_sum + SecondSum();
        int accumulators[kPartRows];
#pragma unroll
        for (int row = 0; row < kPartRows / 2; ++row) {
          accumulators[row] = first_sum[32 * row];
          accumulators[row + kPartRows / 2] = second_sum[32 * row];
        }
        Finish<kIsGated>(accumulators, TotalOf(index + i), values[i]);
      }
      index += kAtOnce;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i * num_epilogue_warps_ < num_tokens_) Put<kIsGated>(values[i], first_row, out);
        out += OutStride();
      }
    }
  }

  template <int kSplits>
  __device__ void WriteSplit(const int* tile_accumulators) {
    constexpr int kWarpTokens = std::max(1, Shape::kTokens / (Shape::kConsumerWarps * kSplits));
    int accumulators[kParts][kWarpTokens][kPartRows];
    int all_sums = 0;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int i = 0; i < kWarpTokens; ++i) {
        const int token = min(epilogue_warp_ + i * num_epilogue_warps_, Shape::kTokens - 1);
        AddUp<kSplits>(SharedAddress(tile_accumulators + FirstSum(token, FirstRow(part))),
                       SecondSum() * int{sizeof(int)}, accumulators[part][i]);
#pragma unroll
        for (const int sum : accumulators[part][i]) all_sums ^= sum;
      }
    }
    // No more reads from other blocks: they may end.
    ClusterArriveRelaxed(all_sums);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      if (part > 0) LoadFactors(part);
      float* out = FirstOut(FirstRow(part));
#pragma unroll
      for (int i = 0; i < kWarpTokens; ++i) {
        const InputTotal total = TotalOf(i);
        if (epilogue_warp_ + i * num_epilogue_warps_ >= num_tokens_) break;
        if (is_gated_) {
          float values[kPartRows / 2];
          Finish<true>(accumulators[part][i], total, values);
          Put<true>(values, FirstRow(part), out);
        } else {
          float values[kPartRows];
          Finish<false>(accumulators[part][i], total, values);
          Put<false>(values, FirstRow(part), out);
        }
        out += OutStride();
      }
    }
    ClusterWait();
  }

  // Sums of all blocks; `address` is that of the first in this block's shared memory.
  template <int kSplits>
  static __device__ void AddUp(uint32_t address, int second_offset,
                               int (&accumulators)[kPartRows]) {
#pragma unroll
    for (int row = 0; row < kPartRows; ++row) accumulators[row] = 0;
#pragma unroll
    for (int rank = 0; rank < kSplits; ++rank) {
      const uint32_t first = MapToRank(address, rank);
      const uint32_t second = first + second_offset;
#pragma unroll
      for (int row = 0; row < kPartRows / 2; ++row) {
        const int offset = 32 * row * int{sizeof(int)};
        accumulators[row] += static_cast<int>(LoadFromCluster(first + offset));
        accumulators[row + kPartRows / 2] += static_cast<int>(LoadFromCluster(second + offset));
      }
    }
  }

  template <bool kIsGated, int kOutputs>
  __device__ void Finish(const int (&accumulators)[kPartRows], const InputTotal& total,
                         float (&values)[kOutputs]) const {
    const auto value = [&](int row) {
      return FinishBits(0, accumulators[row], total, row_scales_[row], biases_[row]);
    };
#pragma unroll
    for (int row = 0; row < kOutputs; ++row) {
      values[row] = kIsGated ? SwiGluValue(value(row), value(row + kPartRows / 2)) : value(row);
    }
  }

  template <bool kIsGated, int kOutputs>
  __device__ void Put(const float (&values)[kOutputs], int first_row, float* out) const {
    const int num_lane_outputs = num_outputs_ - first_output_ - 32 * first_row;
    // In every lane.
    const bool is_full = num_lane_outputs + static_cast<int>(threadIdx.x) % 32 >= 32 * kOutputs;
    if (!kIsGated && arguments_->accumulate) {
#pragma unroll
      for (int row = 0; row < kOutputs; ++row) {
        if (32 * row < num_lane_outputs) AddOutput(out + 32 * row, values[row]);
      }
    } else if (is_full) {
#pragma unroll
      for (int row = 0; row < kOutputs; ++row) out[32 * row] = values[row];
    } else {
#pragma unroll
      for (int row = 0; row < kOutputs; ++row) {
        if (32 * row < num_lane_outputs) out[32 * row] = values[row];
      }
    }
  }

  const ProductArguments* arguments_;
  bool is_gated_;
  int epilogue_warp_;
  int num_epilogue_warps_;
  int num_outputs_;
  int first_token_;
  int num_tokens_;    // of the tile
  int first_output_;  // of the lane
  float row_scales_[kPartRows];
  float biases_[kPartRows];
  InputTotal own_total_;
};

// Epilogue warps of a tile that its block has for itself. All warps write a block's last one.
template <typename Shape>
__device__ inline int NumEpilogueWarps(const Grid& grid, const Work& work, int tile) {
  const bool is_last = tile + work.tile_stride >= grid.num_tiles;
  return Shape::kEpilogueWarps + (is_last || !Shape::kHasEpilogueWarps ? Shape::kConsumerWarps : 0);
}

// An epilogue warp.
template <typename Shape>
__device__ inline void RunEpilogueWarp(const ProductArguments& arguments, const Grid& grid,
                                       const Work& work, const int* tile_accumulators,
                                       int epilogue_warp, const Shared<Shape>& shared) {
  WaitForGridDependency();
  int parity = 0;
  for (int tile = work.first_tile; tile < grid.num_tiles; tile += work.tile_stride) {
    TileEpilogue<Shape> epilogue(arguments, grid, tile, epilogue_warp,
                                 NumEpilogueWarps<Shape>(grid, work, tile));
    epilogue.LoadFactors();
    epilogue.LoadTotals();
    MbarrierWait(SharedAddress(&shared.accumulators_full), parity);
    epilogue.Write(tile_accumulators);
    MbarrierArrive(SharedAddress(&shared.accumulators_empty));
    parity ^= 1;
  }
}

}  // namespace ultrasketch::cuda::bit_product_hopper

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_EPILOGUE_CUH_
