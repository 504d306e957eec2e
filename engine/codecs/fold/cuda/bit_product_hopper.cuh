// Products of sign bits with more than a few tokens by wgmma.
//
//                      kTokens tokens
//   64 * kTiles rows  [ warpgroup 0 ]     sums in registers
//   64 * kTiles rows  [ warpgroup 1 ]     one more warp fills a ring of stages, a bit step each
//
// Operand A is the bits, expanded to bytes in registers; operand B the inputs' two planes, copied
// by the tensor unit, a token being two columns. Weights are tiny, so tiles are tall: at 256 rows
// by 64 tokens a multiprocessor reads 16 bytes of inputs a clock from the second-level cache while
// its tensor cores are busy, and 64 from shared memory. Expanding takes 16 logic operations for an
// instruction's four, or a quarter of the logic units' time.
//
// The sums of a tile go to shared memory, and from there, a token's neighbouring rows at a time, to
// the outputs. Gated, a tile is as many gates as ups, half of its row tiles each, and whoever
// writes it has both at hand.
//
// With many tiles blocks stay and take tile after tile, rows first, so that those at work share
// their tokens; the ring is filled for the next tile while the outputs of one are written. Writing
// those of 256 rows by 64 tokens takes as long as multiplying 512 columns: warps of their own do it
// while the others are at the next tile. Of the last one, all write.
//
// With few tiles the bound is latency: a warpgroup alone takes some 800 clocks for a step that
// keeps the tensor cores busy for 128 (16 tokens) to 512 (64). So the steps of a tile are divided
// among the blocks of a cluster,
//
//   tile  [ steps of rank 0 ][ steps of rank 1 ] ... [ rank num_splits - 1 ]
//
// and each rank adds up, through the cluster's shared memory, and writes the outputs of a share of
// the tile's tokens. Sums are exact integers, so that the division does not show in the results.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_CUH_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_CUH_

#include <cuda.h>

#include <algorithm>
#include <cstdint>

#include "engine/codecs/cuda/barriers.cuh"
#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/cuda/warpgroup.cuh"
#include "engine/codecs/fold/cuda/bit_layout.h"
#include "engine/codecs/fold/cuda/bit_product.cuh"
#include "engine/codecs/fold/cuda/warpgroup_bytes.cuh"

namespace ultrasketch::cuda::bit_product_hopper {

inline constexpr int kWarpgroupRows = 64;
inline constexpr int kHalves = kBitStepColumns / kPlaneBytes;
inline constexpr int kInstructionsPerHalf = kInstructionsPerBitStep / kHalves;
inline constexpr int kInstructionColumns = 32;
inline constexpr int kBitStepWords = kBitStepBytes / 4;
// Swizzled operands begin at multiples of 1024.
inline constexpr int kAlignment = 1024;
// Shared memory of a multiprocessor, and what a block takes of it besides stages and sums: the
// system's, and barriers.
inline constexpr int kMultiprocessorBytes = 228 * 1024;
inline constexpr int kSystemBytes = 1024;
inline constexpr int kBarrierBytes = 256;
inline constexpr int kMostSplits = 8;

// kBlocks: to a multiprocessor.
template <int kTilesOf, int kWarpgroupsOf, int kTokensOf, int kBlocksOf>
struct HopperShape {
  static constexpr int kTiles = kTilesOf;  // of 64 rows, for each warpgroup
  static constexpr int kWarpgroups = kWarpgroupsOf;
  static constexpr int kTokens = kTokensOf;
  static constexpr int kBlocks = kBlocksOf;
  static constexpr int kColumns = 2 * kTokens;
  static constexpr int kRows = kWarpgroupRows * kTiles * kWarpgroups;
  static constexpr int kRowTiles = kRows / kTileRows;
  static constexpr int kMultiplyWarps = 4 * kWarpgroups;
  static constexpr int kMultiplyThreads = 32 * kMultiplyWarps;
  // Warps that do nothing but write: three that share a warpgroup with the one that fills, from
  // which registers move to those that multiply. Without them, the ones that multiply write.
  static constexpr bool kWritesApart = kTiles > 1;
  static constexpr int kWriteWarps = kWritesApart ? 3 : 0;
  static constexpr int kThreads = kMultiplyThreads + 32 + 32 * kWriteWarps;
  static constexpr int kHalfBytes = kColumns * kPlaneBytes;
  static constexpr int kInputBytes = kHalves * kHalfBytes;
  static constexpr int kStageBytes = kInputBytes + kRowTiles * kBitStepBytes;
  static_assert(kStageBytes % kAlignment == 0);
  static constexpr int kSumBytes = kRows * kTokens * int{sizeof(int)};
  static constexpr int kStages = std::min(
      8, (kMultiprocessorBytes / kBlocks - kSystemBytes - kBarrierBytes - kAlignment - kSumBytes) /
             kStageBytes);
  static constexpr int kSharedBytes = kAlignment + kStages * kStageBytes + kSumBytes;
};

template <typename Shape>
struct Shared {
  SharedBarrier full[Shape::kStages];
  SharedBarrier empty[Shape::kStages];
  // Of the sums, where a block has a tile for itself.
  SharedBarrier sums_full;
  SharedBarrier sums_empty;
  static_assert((2 * Shape::kStages + 2) * int{sizeof(SharedBarrier)} <= kBarrierBytes);
};

struct Grid {
  int row_blocks;
  int num_tiles;
  int log2_splits;  // blocks of a cluster; if more than one, each cluster takes one tile
  bool is_gated;
  int num_outputs;  // of a token
};

// Where the inputs and the bits are.
struct Maps {
  CUtensorMap inputs;
  CUtensorMap bits;
};

// What a block does: tiles first_tile, first_tile + tile_stride and so on, of each the bit steps
// [first_step, end_step).
struct Work {
  int rank;
  int first_tile;
  int tile_stride;
  int first_step;
  int end_step;
};

__device__ inline Work WorkOf(const ProductArguments& arguments, const Grid& grid) {
  const int num_steps = static_cast<int>(arguments.matrix.num_steps) / kStepsPerBitStep;
  const int rank = grid.log2_splits > 0 ? ClusterRank() : 0;
  return {rank, static_cast<int>(blockIdx.x >> grid.log2_splits),
          static_cast<int>(gridDim.x >> grid.log2_splits), rank * num_steps >> grid.log2_splits,
          (rank + 1) * num_steps >> grid.log2_splits};
}

__device__ inline void ExpectBytes(uint32_t barrier, int num_bytes) {
  asm volatile(
      "{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(barrier),
      "r"(num_bytes)
      : "memory");
}

// A step's inputs from `token` on: [half][token][plane][128 bytes].
__device__ inline void CopyInputs(const CUtensorMap& map, int step, int token, uint32_t shared,
                                  uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared),
      "l"(&map), "r"(0), "r"(0), "r"(token), "r"(step * kHalves), "r"(barrier)
      : "memory");
}

// A step's bits from `row_tile` on: [row tile][kBitStepBytes].
__device__ inline void CopyBits(const CUtensorMap& map, int step, int row_tile, uint32_t shared,
                                uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3}], [%4];" ::"r"(shared),
      "l"(&map), "r"(step * kBitStepWords), "r"(row_tile), "r"(barrier)
      : "memory");
}

__device__ inline void PrefetchMap(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// A step's bits of a tile: of its row tiles, or of half as many of gates and then of their ups.
template <typename Shape>
__device__ inline void CopyTileBits(const Maps& maps, const PackedMatrix& matrix, const Grid& grid,
                                    int tile, int step, uint32_t shared, uint32_t barrier) {
  const int row_block = tile % grid.row_blocks;
  if (!grid.is_gated) {
    CopyBits(maps.bits, step, row_block * Shape::kRowTiles, shared, barrier);
    return;
  }
  constexpr int kGateTiles = Shape::kRowTiles / 2;
  const int first_up = static_cast<int>(matrix.rows) / (2 * kTileRows);
  CopyBits(maps.bits, step, row_block * kGateTiles, shared, barrier);
  CopyBits(maps.bits, step, first_up + row_block * kGateTiles, shared + kGateTiles * kBitStepBytes,
           barrier);
}

// One thread. The bits of the first stages are on their way before the kernel that writes the
// inputs has ended.
template <typename Shape>
__device__ inline void FillStages(const Maps& maps, const PackedMatrix& matrix, const Grid& grid,
                                  const Work& work, uint32_t stages, const Shared<Shape>& shared) {
  const BarrierArray full(shared.full);
  const BarrierArray empty(shared.empty);
  const auto begin_stage = [&](int slot, int tile, int step) {
    ExpectBytes(full[slot], Shape::kStageBytes);
    CopyTileBits<Shape>(maps, matrix, grid, tile, step,
                        stages + slot * Shape::kStageBytes + Shape::kInputBytes, full[slot]);
  };
  int num_begun = min(Shape::kStages, work.end_step - work.first_step);
  for (int i = 0; i < num_begun; ++i) begin_stage(i, work.first_tile, work.first_step + i);
  WaitForKernelBefore();

  Ring ring(Shape::kStages);
  for (int tile = work.first_tile; tile < grid.num_tiles; tile += work.tile_stride) {
    const int first_token = tile / grid.row_blocks * Shape::kTokens;
    for (int step = work.first_step; step < work.end_step; ++step) {
      if (--num_begun < 0) {
        WaitForPhase(empty[ring.slot()], ring.parity() ^ 1);
        begin_stage(ring.slot(), tile, step);
      }
      CopyInputs(maps.inputs, step, first_token, stages + ring.slot() * Shape::kStageBytes,
                 full[ring.slot()]);
      ring.Advance();
    }
  }
}

// The registers of a half step's instructions from the words of a lane's four chunks of two rows.
template <int kHalf>
__device__ inline void ExpandBits(const uint4 (&words)[4], int quad,
                                  uint32_t (&a)[kInstructionsPerHalf][4]) {
#pragma unroll
  for (int chunk = 0; chunk < 4; ++chunk) {
    const uint32_t low = (kHalf == 0 ? words[chunk].x : words[chunk].z) >> quad;
    const uint32_t high = (kHalf == 0 ? words[chunk].y : words[chunk].w) >> quad;
    const int instruction = chunk / 2;
    const int reg = chunk % 2 * 2;
    a[instruction][reg] = low & kUnitMask;
    a[instruction][reg + 1] = high & kUnitMask;
    a[instruction + 2][reg] = low >> kUnitsPerChunk & kUnitMask;
    a[instruction + 2][reg + 1] = high >> kUnitsPerChunk & kUnitMask;
  }
}

// sums += bits * inputs of a half step; `inputs` is its operand B.
template <int kCount>
__device__ inline void MultiplyHalf(const uint32_t (&a)[kInstructionsPerHalf][4], uint32_t inputs,
                                    int (&sums)[kCount]) {
  FenceWarpgroup();
#pragma unroll
  for (int i = 0; i < kInstructionsPerHalf; ++i) {
    WarpgroupMultiplyBytes(a[i],
                           OperandDescriptor(inputs + i * kInstructionColumns, 0, 8 * kPlaneBytes,
                                             OperandSwizzle::k128Bytes),
                           sums);
  }
  CommitWarpgroup();
}

// Of the block. By way of all lanes, so that the compiler knows it to be the same in each.
__device__ inline int ThisWarp() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
}

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
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int i = 0; i < kWarpTokens; ++i) {
        const int token = min(writer_ + i * num_writers_, Shape::kTokens - 1);
        AddUp<kSplits>(SharedAddress(tile_sums + FirstSum(token, FirstRow(part))),
                       SecondSum() * int{sizeof(int)}, sums[part][i]);
      }
    }
    // No more reads from other blocks: they may end.
    __syncwarp();
    ArriveAtCluster();
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
    __syncwarp();
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
    __syncwarp();
    if (threadIdx.x % 32 == 0) Arrive(SharedAddress(&shared.sums_empty));
    parity ^= 1;
  }
}

template <typename Shape>
__device__ inline void MultiplyStages(const ProductArguments& arguments, const Grid& grid,
                                      const Work& work, uint8_t* stages, int* tile_sums,
                                      const Shared<Shape>& shared) {
  constexpr int kTiles = Shape::kTiles;
  const int block_warp = ThisWarp();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int quad = lane % 4;
  // Of this warp in the first tile of its warpgroup.
  const int row_tile = block_warp / 4 * (4 * kTiles) + block_warp % 4;
  const uint8_t* first_words =
      stages + Shape::kInputBytes + row_tile * kBitStepBytes + lane / 4 * 64;
  const uint32_t first_inputs = SharedAddress(stages);

  const BarrierArray full(shared.full);
  const BarrierArray empty(shared.empty);
  const uint32_t sums_full = SharedAddress(&shared.sums_full);
  const uint32_t sums_empty = SharedAddress(&shared.sums_empty);
  const bool is_split = grid.log2_splits > 0;
  Ring ring(Shape::kStages);
  int sums_parity = 0;
  for (int tile = work.first_tile; tile < grid.num_tiles; tile += work.tile_stride) {
    const auto writer_of = [&](int of_tile) {
      return TileWriter<Shape>(arguments, grid, of_tile,
                               is_split ? work.rank * Shape::kMultiplyWarps + block_warp
                                        : Shape::kWriteWarps + block_warp,
                               is_split ? Shape::kMultiplyWarps << grid.log2_splits
                                        : NumWriters<Shape>(grid, work, of_tile));
    };
    TileWriter<Shape> tile_writer = writer_of(tile);
    // On their way while others are multiplied; where there are too many sums to keep them beside,
    // they are loaded after.
    if (!Shape::kWritesApart) tile_writer.LoadFactors();
    if (tile == work.first_tile) {
      FinishIssuingLoads();
      WaitForKernelBefore();
    }
    if (!Shape::kWritesApart) tile_writer.LoadTotals();

    int sums[kTiles][Shape::kColumns / 2];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < Shape::kColumns / 2; ++i) sums[t][i] = 0;
    }
    int previous_stage = 0;
    for (int step = work.first_step; step < work.end_step; ++step) {
      WaitForPhase(full[ring.slot()], ring.parity());
      const uint8_t* words_of_stage = first_words + ring.slot() * Shape::kStageBytes;
      const uint32_t inputs = first_inputs + ring.slot() * Shape::kStageBytes;
      // Two sets, so that one is expanded while the tensor cores read the other.
      uint32_t a[kHalves][kInstructionsPerHalf][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        uint4 words[4];
#pragma unroll
        for (int chunk = 0; chunk < 4; ++chunk) {
          words[chunk] =
              *reinterpret_cast<const uint4*>(words_of_stage + t * 4 * kBitStepBytes + chunk * 16);
        }
        WaitForWarpgroup<1>();
        ExpandBits<0>(words, quad, a[0]);
        MultiplyHalf(a[0], inputs, sums[t]);
        WaitForWarpgroup<1>();
        // All of the step before is done.
        if (t == 0 && step > work.first_step && lane == 0) Arrive(empty[previous_stage]);
        ExpandBits<1>(words, quad, a[1]);
        MultiplyHalf(a[1], inputs + Shape::kHalfBytes, sums[t]);
      }
      previous_stage = ring.slot();
      ring.Advance();
    }
    WaitForWarpgroup<0>();
    if (lane == 0) Arrive(empty[previous_stage]);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) FenceByteSums(sums[t]);

    if (!is_split) WaitForPhase(sums_empty, sums_parity ^ 1);
    StoreSums<Shape>(sums, row_tile * kTileRows + lane / 4, quad, tile_sums);
    __syncwarp();
    if (!is_split && lane == 0) Arrive(sums_full);
    if (is_split || NumWriters<Shape>(grid, work, tile) > Shape::kWriteWarps) {
      if (Shape::kWritesApart) {
        tile_writer = writer_of(Opaque(tile));
        tile_writer.LoadFactors();
        tile_writer.LoadTotals();
      }
      if (is_split) {
        __syncwarp();
        SyncCluster();
        tile_writer.WriteShare(tile_sums, grid.log2_splits);
      } else {
        WaitForPhase(sums_full, sums_parity);
        tile_writer.Write(tile_sums);
        __syncwarp();
        if (!Shape::kWritesApart && lane == 0) Arrive(sums_empty);
      }
    }
    sums_parity ^= 1;
  }
}

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    BitProductHopper(const __grid_constant__ ProductArguments arguments,
                     const __grid_constant__ Maps maps, const __grid_constant__ Grid grid) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t dynamic_shared[];
  __shared__ Shared<Shape> shared;
  uint8_t* stages =
      dynamic_shared + (kAlignment - SharedAddress(dynamic_shared) % kAlignment) % kAlignment;
  AllowNextKernel();
  if (threadIdx.x == 0) {
    const BarrierArray full(shared.full);
    const BarrierArray empty(shared.empty);
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      InitBarrier(full[stage], 1);
      InitBarrier(empty[stage], Shape::kMultiplyWarps);
    }
    InitBarrier(SharedAddress(&shared.sums_full), Shape::kMultiplyWarps);
    InitBarrier(SharedAddress(&shared.sums_empty),
                Shape::kWritesApart ? Shape::kWriteWarps : Shape::kMultiplyWarps);
    FenceForWarpgroups();
  } else if (threadIdx.x == Shape::kMultiplyThreads) {
    PrefetchMap(maps.bits);
    PrefetchMap(maps.inputs);
  }
  __syncthreads();
  auto* tile_sums = reinterpret_cast<int*>(stages + Shape::kStages * Shape::kStageBytes);
  const Work work = WorkOf(arguments, grid);
  if (threadIdx.x >= Shape::kMultiplyThreads) {
    if constexpr (Shape::kWritesApart) {
      LowerRegisters<56>();
      const int writer = ThisWarp() - Shape::kMultiplyWarps - 1;
      if (writer >= 0 && grid.log2_splits == 0) {
        WriteTiles<Shape>(arguments, grid, work, tile_sums, writer, shared);
      }
    }
    if (threadIdx.x == Shape::kMultiplyThreads) {
      FillStages<Shape>(maps, arguments.matrix, grid, work, SharedAddress(stages), shared);
    }
    __syncwarp();
    // As often as the warps that multiply.
    if (grid.log2_splits > 0) {
      SyncCluster();
      SyncCluster();
    }
  } else {
    if constexpr (Shape::kWritesApart) RaiseRegisters<224>();
    MultiplyStages<Shape>(arguments, grid, work, stages, tile_sums, shared);
  }
#endif
}

}  // namespace ultrasketch::cuda::bit_product_hopper

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_CUH_
