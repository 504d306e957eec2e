// Outputs of the products of sign bits by wgmma (bit_product_hopper.cuh): sums of a tile in shared
// memory, and the warps that make outputs of them.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_WRITER_CUH_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_WRITER_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/codecs/cuda/barriers.cuh"
#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/product.cuh"
#include "engine/codecs/fold/cuda/bit_product.cuh"
#include "engine/codecs/fold/cuda/bit_product_hopper_shape.cuh"

namespace ultrasketch::cuda::bit_product_hopper {

// Where a tile's sums lie: tokens one after the other, of each fourth one the rows dealt so that
// neither the lanes that have them nor those that read neighbouring rows of a token meet in a bank.
template <typename Shape>
__device__ inline int SumIndex(int token, int row) {
  return token * Shape::kRows + (row ^ token % 4 * 8);
}

// A thread's sums to the tile's, from `first_row` of the tile on, as far as FinishBits takes them:
// the high plane's and the low one's in one, which may be added to others before.
template <typename Shape>
__device__ inline void StoreSums(const int (&sums)[Shape::kTiles][Shape::kColumns / 2],
                                 int first_row, int quad, int* tile_sums) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int* const out = tile_sums + SumIndex<Shape>(quad, first_row + half * 8);
#pragma unroll
    for (int t = 0; t < Shape::kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < Shape::kTokens / 4; ++i) {
        const unsigned high = static_cast<unsigned>(sums[t][4 * i + 2 * half]);
        const unsigned low = static_cast<unsigned>(sums[t][4 * i + 2 * half + 1]);
        out[i * 4 * Shape::kRows + t * kWarpgroupRows] = static_cast<int>(high * 256u + low);
      }
    }
  }
}

// Keeps the compiler from working out before a loop what follows from `value` in it, to hold it in
// registers.
__device__ inline int Opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// One warp: writes the outputs of every num_writers-th token of a tile. Rows are neighbours from
// lane to lane, and kPartRows of a lane are 32 apart; gated, the second half of them are ups to the
// first.
template <typename Shape>
class TileWriter {
 public:
  __device__ TileWriter(const ProductArguments& arguments, const Grid& grid, int tile, int writer,
                        int num_writers)
      : arguments_(&arguments),
        is_gated_(grid.is_gated),
        writer_(writer),
        num_writers_(num_writers),
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
    const int token = writer_ + static_cast<int>(threadIdx.x) % 32 * num_writers_;
    own_total_ = {};
    if (token < num_tokens_) own_total_ = SumTotals(TrailerOf(*arguments_, first_token_ + token));
  }

  // From this block's sums, complete.
  __device__ void Write(const int* tile_sums) {
#pragma unroll 1
    for (int part = 0; part < kParts; ++part) {
      if (part > 0) LoadFactors(part);
      if (is_gated_) {
        WritePart<true>(tile_sums, part);
      } else {
        WritePart<false>(tile_sums, part);
      }
    }
  }

  // From those of all blocks of a cluster, which end after it.
  __device__ void WriteShare(const int* tile_sums, int log2_splits) {
    if (log2_splits == 1) {
      WriteShare<2>(tile_sums);
    } else if (log2_splits == 2) {
      WriteShare<4>(tile_sums);
    } else {
      WriteShare<kMostSplits>(tile_sums);
    }
  }

 private:
  static constexpr int kLaneRows = Shape::kRows / 32;
  static constexpr int kPartRows = std::min(kLaneRows, 4);
  static constexpr int kParts = kLaneRows / kPartRows;

  // Of the lane's rows of the tile, and of its outputs.
  __device__ int FirstRow(int part) const { return part * (is_gated_ ? kPartRows / 2 : kPartRows); }

  __device__ void LoadFactors(int part) {
    const PackedMatrix& matrix = arguments_->matrix;
    const int first_output = Opaque(first_output_ + 32 * FirstRow(part));
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

  // Of the warp's token `index`.
  __device__ InputTotal TotalOf(int index) const {
    return {__shfl_sync(0xffffffffu, own_total_.scale, index),
            __shfl_sync(0xffffffffu, own_total_.total, index)};
  }

  // Where a token's sums of a part begin: of the first half of the lane's rows, and from there on
  // of the second.
  __device__ int FirstSum(int token, int first_row) const {
    return SumIndex<Shape>(token, 32 * first_row + static_cast<int>(threadIdx.x) % 32);
  }
  __device__ int SecondSum() const { return is_gated_ ? Shape::kRows / 2 : 32 * (kPartRows / 2); }

  __device__ float* FirstOut(int first_row) const {
    return arguments_->y + int64_t{first_token_ + writer_} * num_outputs_ + first_output_ +
           32 * first_row;
  }
  __device__ int64_t OutStride() const { return int64_t{num_writers_} * num_outputs_; }

  template <bool kIsGated>
  __device__ void WritePart(const int* tile_sums, int part) const {
    // Two tokens at a time, so that instructions of one are under way while those of the other
    // wait.
    constexpr int kAtOnce = 2;
    constexpr int kOutputs = kIsGated ? kPartRows / 2 : kPartRows;
    const int first_row = Opaque(FirstRow(part));
    float* out = FirstOut(first_row);
    int index = 0;
#pragma unroll 1
    for (int first = writer_; first < num_tokens_; first += kAtOnce * num_writers_) {
      float values[kAtOnce][kOutputs];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        // What comes of tokens past the end is dropped.
        const int token = min(first + i * num_writers_, Shape::kTokens - 1);
        const int* first_sum = tile_sums + FirstSum(token, first_row);
        const int* second_sum = first_sum + SecondSum();
        int sums[kPartRows];
#pragma unroll
        for (int row = 0; row < kPartRows / 2; ++row) {
          sums[row] = first_sum[32 * row];
          sums[row + kPartRows / 2] = second_sum[32 * row];
        }
        Finish<kIsGated>(sums, TotalOf(index + i), values[i]);
      }
      index += kAtOnce;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i * num_writers_ < num_tokens_) Put<kIsGated>(values[i], first_row, out);
        out += OutStride();
      }
    }
  }

  template <int kSplits>
  __device__ void WriteShare(const int* tile_sums) {
    constexpr int kWarpTokens = std::max(1, Shape::kTokens / (Shape::kMultiplyWarps * kSplits));
    int sums[kParts][kWarpTokens][kPartRows];
    int all_sums = 0;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int i = 0; i < kWarpTokens; ++i) {
        const int token = min(writer_ + i * num_writers_, Shape::kTokens - 1);
        AddUp<kSplits>(SharedAddress(tile_sums + FirstSum(token, FirstRow(part))),
                       SecondSum() * int{sizeof(int)}, sums[part][i]);
#pragma unroll
        for (const int sum : sums[part][i]) all_sums ^= sum;
      }
    }
    // No more reads from other blocks: they may end.
    ArriveAtClusterRelaxed(all_sums);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      if (part > 0) LoadFactors(part);
      float* out = FirstOut(FirstRow(part));
#pragma unroll
      for (int i = 0; i < kWarpTokens; ++i) {
        const InputTotal total = TotalOf(i);
        if (writer_ + i * num_writers_ >= num_tokens_) break;
        if (is_gated_) {
          float values[kPartRows / 2];
          Finish<true>(sums[part][i], total, values);
          Put<true>(values, FirstRow(part), out);
        } else {
          float values[kPartRows];
          Finish<false>(sums[part][i], total, values);
          Put<false>(values, FirstRow(part), out);
        }
        out += OutStride();
      }
    }
    WaitForCluster();
  }

  // Sums of all blocks; `address` is that of the first in this block's shared memory.
  template <int kSplits>
  static __device__ void AddUp(uint32_t address, int second_offset, int (&sums)[kPartRows]) {
#pragma unroll
    for (int row = 0; row < kPartRows; ++row) sums[row] = 0;
#pragma unroll
    for (int rank = 0; rank < kSplits; ++rank) {
      const uint32_t first = AddressInCluster(address, rank);
      const uint32_t second = first + second_offset;
#pragma unroll
      for (int row = 0; row < kPartRows / 2; ++row) {
        const int offset = 32 * row * int{sizeof(int)};
        sums[row] += static_cast<int>(LoadFromCluster(first + offset));
        sums[row + kPartRows / 2] += static_cast<int>(LoadFromCluster(second + offset));
      }
    }
  }

  template <bool kIsGated, int kOutputs>
  __device__ void Finish(const int (&sums)[kPartRows], const InputTotal& total,
                         float (&values)[kOutputs]) const {
    const auto value = [&](int row) {
      return FinishBits(0, sums[row], total, row_scales_[row], biases_[row]);
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
  int writer_;
  int num_writers_;
  int num_outputs_;
  int first_token_;
  int num_tokens_;    // of the tile
  int first_output_;  // of the lane
  float row_scales_[kPartRows];
  float biases_[kPartRows];
  InputTotal own_total_;
};

// Of a tile whose block has it for itself. All warps write a block's last one.
template <typename Shape>
__device__ inline int NumWriters(const Grid& grid, const Work& work, int tile) {
  const bool is_last = tile + work.tile_stride >= grid.num_tiles;
  return Shape::kWriteWarps + (is_last || !Shape::kWritesApart ? Shape::kMultiplyWarps : 0);
}

// A warp that only writes.
template <typename Shape>
__device__ inline void WriteTiles(const ProductArguments& arguments, const Grid& grid,
                                  const Work& work, const int* tile_sums, int writer,
                                  const Shared<Shape>& shared) {
  WaitForKernelBefore();
  int parity = 0;
  for (int tile = work.first_tile; tile < grid.num_tiles; tile += work.tile_stride) {
    TileWriter<Shape> tile_writer(arguments, grid, tile, writer,
                                  NumWriters<Shape>(grid, work, tile));
    tile_writer.LoadFactors();
    tile_writer.LoadTotals();
    WaitForPhase(SharedAddress(&shared.sums_full), parity);
    tile_writer.Write(tile_sums);
    Arrive(SharedAddress(&shared.sums_empty));
    parity ^= 1;
  }
}

}  // namespace ultrasketch::cuda::bit_product_hopper

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_WRITER_CUH_
