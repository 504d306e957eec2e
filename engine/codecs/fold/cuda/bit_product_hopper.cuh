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

#include <cstdint>

#include "engine/codecs/cuda/barriers.cuh"
#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/cuda/operand_boxes.cuh"
#include "engine/codecs/cuda/warpgroup.cuh"
#include "engine/codecs/cuda/warpgroup_bytes.cuh"
#include "engine/codecs/fold/cuda/bit_layout.h"
#include "engine/codecs/fold/cuda/bit_product_hopper_shape.cuh"
#include "engine/codecs/fold/cuda/bit_product_hopper_writer.cuh"

namespace ultrasketch::cuda::bit_product_hopper {

// A step's bits of a tile: of its row tiles, or of half as many of gates and then of their ups.
template <typename Shape>
__device__ inline void CopyTileBits(const Maps& maps, const PackedMatrix& matrix, const Grid& grid,
                                    int tile, int step, uint32_t shared, uint32_t barrier) {
  const auto copy = [&](int row_tile, uint32_t to) {
    StartBox(maps.bits, step * kBitStepWords, row_tile, to, barrier);
  };
  const int row_block = tile % grid.row_blocks;
  if (!grid.is_gated) {
    copy(row_block * Shape::kRowTiles, shared);
    return;
  }
  constexpr int kGateTiles = Shape::kRowTiles / 2;
  const int first_up = static_cast<int>(matrix.rows) / (2 * kTileRows);
  copy(row_block * kGateTiles, shared);
  copy(first_up + row_block * kGateTiles, shared + kGateTiles * kBitStepBytes);
}

// One thread. The bits of the first stages are on their way before the kernel that writes the
// inputs has ended.
template <typename Shape>
__device__ inline void FillStages(const Maps& maps, const PackedMatrix& matrix, const Grid& grid,
                                  const Work& work, uint32_t stages, const Shared<Shape>& shared) {
  const BarrierArray full(shared.full);
  const BarrierArray empty(shared.empty);
  const auto begin_stage = [&](int slot, int tile, int step) {
    ArriveAndExpect(full[slot], Shape::kStageBytes);
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
      CopyPlanes(maps.inputs, step * kHalves, first_token,
                 stages + ring.slot() * Shape::kStageBytes, full[ring.slot()]);
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
    if (!is_split) Arrive(sums_full);
    if (is_split || NumWriters<Shape>(grid, work, tile) > Shape::kWriteWarps) {
      if (Shape::kWritesApart) {
        tile_writer = writer_of(Opaque(tile));
        tile_writer.LoadFactors();
        tile_writer.LoadTotals();
      }
      if (is_split) {
        SyncCluster();
        tile_writer.WriteShare(tile_sums, grid.log2_splits);
      } else {
        WaitForPhase(sums_full, sums_parity);
        tile_writer.Write(tile_sums);
        if (!Shape::kWritesApart) Arrive(sums_empty);
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
    InitRing(BarrierArray(shared.full), BarrierArray(shared.empty), Shape::kStages,
             /*full_arrivals=*/1, /*empty_arrivals=*/Shape::kMultiplyWarps);
    InitBarrier(SharedAddress(&shared.sums_full), Shape::kMultiplyThreads);
    InitBarrier(SharedAddress(&shared.sums_empty),
                32 * (Shape::kWritesApart ? Shape::kWriteWarps : Shape::kMultiplyWarps));
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
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ArriveAtClusterRelaxed();
        WaitForCluster();
      }
    }
  } else {
    if constexpr (Shape::kWritesApart) RaiseRegisters<224>();
    MultiplyStages<Shape>(arguments, grid, work, stages, tile_sums, shared);
  }
#endif
}

}  // namespace ultrasketch::cuda::bit_product_hopper

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_CUH_
