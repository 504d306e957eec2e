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
// With many tiles blocks stay and take tile after tile, rows first, so that those at work share
// their tokens; the ring is filled for the next tile while the outputs of one are written.
//
// With few tiles the bound is latency: a warpgroup alone takes some 800 clocks for a step that
// keeps the tensor cores busy for 128 (16 tokens) to 512 (64). So the steps of a tile are divided
// among the blocks of a cluster,
//
//   tile  [ steps of rank 0 ][ steps of rank 1 ] ... [ rank num_splits - 1 ]
//
// and each rank adds up, through the cluster's shared memory, and writes an equal share of the
// tile's outputs. Sums are exact integers, so that the division does not show in the results.
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
// Shared memory of a multiprocessor, and what a block takes of it besides the stages.
inline constexpr int kMultiprocessorBytes = 224 * 1024;
inline constexpr int kStaticBytes = 4096;
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
  static constexpr int kMultiplyThreads = 128 * kWarpgroups;
  // The warp that fills has a warpgroup of its own where registers are to move from it.
  static constexpr bool kMovesRegisters = kTiles > 1;
  static constexpr int kThreads = kMultiplyThreads + (kMovesRegisters ? 128 : 32);
  // Outputs of a thread: two rows of each tile, a quarter of the tokens.
  static constexpr int kOutputs = kTiles * kTokens / 2;
  static constexpr int kHalfBytes = kColumns * kPlaneBytes;
  static constexpr int kInputBytes = kHalves * kHalfBytes;
  static constexpr int kStageBytes = kInputBytes + kRowTiles * kBitStepBytes;
  static_assert(kStageBytes % kAlignment == 0);
  static constexpr int kStages =
      std::min(8, (kMultiprocessorBytes / kBlocks - kAlignment - kStaticBytes) / kStageBytes);
  static constexpr int kSharedBytes = kAlignment + kStages * kStageBytes;
  // The cluster's sums lie where the stages were.
  static_assert(kOutputs * kMultiplyThreads * int{sizeof(int)} <= kStages * kStageBytes);
  static_assert(kOutputs % kMostSplits == 0);
};

template <typename Shape>
struct Shared {
  SharedBarrier full[Shape::kStages];
  SharedBarrier empty[Shape::kStages];
  // Of the tile's tokens; two tiles' in turn, so that a warp may be one ahead.
  InputTotal totals[Shape::kWarpgroups][2][Shape::kTokens];
};

struct Grid {
  int row_blocks;
  int num_tiles;
  int log2_splits;  // blocks of a cluster; if more than one, each cluster takes one tile
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

// Barrier 0 is the block's.
template <int kThreads>
__device__ inline void SyncThreads(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}
__device__ inline void SyncWarpgroup(int warpgroup) { SyncThreads<128>(warpgroup + 1); }

// One thread. The bits of the first stages are on their way before the kernel that writes the
// inputs has ended.
template <typename Shape>
__device__ inline void FillStages(const Maps& maps, const Grid& grid, const Work& work,
                                  uint32_t stages, Shared<Shape>& shared) {
  const BarrierArray full(shared.full);
  const BarrierArray empty(shared.empty);
  const auto begin_stage = [&](int slot, int tile, int step) {
    ExpectBytes(full[slot], Shape::kStageBytes);
    CopyBits(maps.bits, step, tile % grid.row_blocks * Shape::kRowTiles,
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

// The sum of output `index` of a thread (a tile's token and row, see OutputPlace) from those of its
// two planes, as far as FinishBits takes it: they may be added to each other before.
template <typename Shape>
__device__ inline int OutputSum(const int (&sums)[Shape::kTiles][Shape::kColumns / 2], int index) {
  const int tile = index / (Shape::kTokens / 2);
  const int first = index % (Shape::kTokens / 2) * 2;
  return static_cast<int>(static_cast<unsigned>(sums[tile][first]) * 256u +
                          static_cast<unsigned>(sums[tile][first + 1]));
}

struct OutputPlace {
  int tile;
  int token;  // of every fourth
  int half;   // the upper eight of the warp's 16 rows or the lower
};

template <typename Shape>
__device__ inline OutputPlace PlaceOf(int index) {
  const int in_tile = index % (Shape::kTokens / 2);
  return {index / (Shape::kTokens / 2), in_tile / 2, in_tile % 2};
}

// Adds up what the ranks of the cluster have for this one's share of the tile's outputs, and calls
// `finish(place, sum)` for each of the calling thread's. All ranks' sums are there, from
// `own_sums` on: [output][thread].
template <typename Shape, int kSplits, typename Finish>
__device__ inline void FinishShare(uint32_t own_sums, int rank, const Finish& finish) {
  constexpr int kShare = Shape::kOutputs / kSplits;
  constexpr int kOutputBytes = Shape::kMultiplyThreads * int{sizeof(int)};
  const uint32_t address = own_sums + rank * (kShare * kOutputBytes) + threadIdx.x * sizeof(int);
  uint32_t sums[kShare] = {};
#pragma unroll
  for (int other = 0; other < kSplits; ++other) {
    const uint32_t other_sums = AddressInCluster(address, other);
#pragma unroll
    for (int i = 0; i < kShare; ++i) sums[i] += LoadFromCluster(other_sums + i * kOutputBytes);
  }
  // No more reads from other blocks: they may end.
  ArriveAtCluster();
#pragma unroll
  for (int i = 0; i < kShare; ++i) {
    finish(PlaceOf<Shape>(rank * kShare + i), static_cast<int>(sums[i]));
  }
  __syncwarp();
  WaitForCluster();
}

template <typename Shape>
__device__ inline void MultiplyStages(const ProductArguments& arguments, const Grid& grid,
                                      const Work& work, uint8_t* stages, Shared<Shape>& shared) {
  constexpr int kTiles = Shape::kTiles;
  const PackedMatrix& matrix = arguments.matrix;
  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int quad = lane % 4;
  // Of this lane's rows l / 4 in the first tile of its warpgroup.
  const uint8_t* first_words =
      stages + Shape::kInputBytes + (warpgroup * kTiles * 4 + warp) * kBitStepBytes + lane / 4 * 64;
  const uint32_t first_inputs = SharedAddress(stages);

  const BarrierArray full(shared.full);
  const BarrierArray empty(shared.empty);
  Ring ring(Shape::kStages);
  int turn = 0;
  for (int tile = work.first_tile; tile < grid.num_tiles; tile += work.tile_stride) {
    const int64_t first_token = int64_t{tile / grid.row_blocks} * Shape::kTokens;
    const int64_t first_row = int64_t{tile % grid.row_blocks} * Shape::kRows +
                              (warpgroup * kTiles * 4 + warp) * kTileRows + lane / 4;
    float row_scales[kTiles][2];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = first_row + t * kWarpgroupRows + half * 8;
        row_scales[t][half] = row < matrix.rows ? matrix.row_scales[row] : 0.0f;
        if (matrix.bias != nullptr && row < matrix.rows) Prefetch(matrix.bias + row);
      }
    }
    if (tile == work.first_tile) {
      FinishIssuingLoads();
      WaitForKernelBefore();
    }
    InputTotal* totals = shared.totals[warpgroup][turn];
    turn ^= 1;
    for (int i = static_cast<int>(threadIdx.x) % 128; i < Shape::kTokens; i += 128) {
      if (first_token + i < arguments.num_tokens) {
        totals[i] = SumTotals(TrailerOf(arguments, first_token + i));
      }
    }

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
    SyncWarpgroup(warpgroup);

    const auto finish = [&](const OutputPlace& place, int sum) {
      const int token = place.token * 4 + quad;
      const int64_t row = first_row + place.tile * kWarpgroupRows + place.half * 8;
      if (first_token + token >= arguments.num_tokens || row >= matrix.rows) return;
      // Not by an index, which would bring the array to memory.
      float row_scale = 0.0f;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (place.tile == t && place.half == half) row_scale = row_scales[t][half];
        }
      }
      PutOutput(arguments, first_token + token, row,
                FinishBits(0, sum, totals[token], row_scale, BiasOf(matrix, row)));
    };
    if (grid.log2_splits == 0) {
#pragma unroll
      for (int i = 0; i < Shape::kOutputs; ++i) {
        finish(PlaceOf<Shape>(i), OutputSum<Shape>(sums, i));
      }
      continue;
    }

    // Every warpgroup has read the last stage.
    SyncThreads<Shape::kMultiplyThreads>(Shape::kWarpgroups + 1);
    auto* shared_sums = reinterpret_cast<int*>(stages);  // [output][thread]
#pragma unroll
    for (int i = 0; i < Shape::kOutputs; ++i) {
      shared_sums[i * Shape::kMultiplyThreads + threadIdx.x] = OutputSum<Shape>(sums, i);
    }
    SyncCluster();
    // Keeps the compiler from working out places before the steps, to hold them in registers.
    int rank = work.rank;
    asm volatile("" : "+r"(rank));
    if (grid.log2_splits == 1) {
      FinishShare<Shape, 2>(first_inputs, rank, finish);
    } else if (grid.log2_splits == 2) {
      FinishShare<Shape, 4>(first_inputs, rank, finish);
    } else {
      FinishShare<Shape, 8>(first_inputs, rank, finish);
    }
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
      InitBarrier(empty[stage], Shape::kWarpgroups * 4);
    }
    FenceForWarpgroups();
  } else if (threadIdx.x == Shape::kMultiplyThreads) {
    PrefetchMap(maps.bits);
    PrefetchMap(maps.inputs);
  }
  __syncthreads();
  const Work work = WorkOf(arguments, grid);
  if (threadIdx.x >= Shape::kMultiplyThreads) {
    if constexpr (Shape::kMovesRegisters) LowerRegisters<40>();
    if (threadIdx.x == Shape::kMultiplyThreads) {
      FillStages<Shape>(maps, grid, work, SharedAddress(stages), shared);
    }
    __syncwarp();
    // As often as the warps that multiply.
    if (grid.log2_splits > 0) {
      SyncCluster();
      SyncCluster();
    }
  } else {
    if constexpr (Shape::kMovesRegisters) RaiseRegisters<232>();
    MultiplyStages<Shape>(arguments, grid, work, stages, shared);
  }
#endif
}

}  // namespace ultrasketch::cuda::bit_product_hopper

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_CUH_
