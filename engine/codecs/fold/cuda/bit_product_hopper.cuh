// Products of sign bits with more than a few tokens by wgmma.
//
//                      kTokens tokens
//   64 * kTiles rows  [ consumer warpgroup 0 ]     accumulators in registers
//   64 * kTiles rows  [ consumer warpgroup 1 ]     a producer warp fills a ring of stages, a bit K
//                                                  tile each
//
// Operand A is the bits, expanded to bytes in registers; operand B the inputs' hi and lo bytes,
// copied by TMA, a token being two columns. Weights are tiny, so tiles are tall: at 256 rows by 64
// tokens an SM reads 16 bytes of inputs a cycle from L2 while its tensor cores are busy, and 64
// from shared memory. Expanding takes 16 logic operations for an instruction's four, or a quarter
// of the logic units' time.
//
// The sums of a tile go to shared memory, and from there, a token's neighbouring rows at a time, to
// the outputs. Gated, half of a tile's M tiles are gates and half their ups, and whoever writes
// it has both at hand.
//
// With many tiles blocks stay and take tile after tile, rows first, so that those at work share
// their tokens; the ring is filled for the next tile while the outputs of one are written. Writing
// those of 256 rows by 64 tokens takes as long as multiplying 512 columns: warps of their own do it
// while the others are at the next tile. Of the last one, all write.
//
// With few tiles the bound is latency: a warpgroup alone takes some 800 cycles for a K tile that
// keeps the tensor cores busy for 128 (16 tokens) to 512 (64). So the K tiles of a tile are divided
// among the blocks of a cluster,
//
//   tile  [ K tiles of rank 0 ][ K tiles of rank 1 ] ... [ rank num_splits - 1 ]
//
// and each rank adds up, through the cluster's shared memory, and writes the outputs of a split of
// the tile's tokens. Sums are exact integers, so that the division does not show in the results.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_CUH_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_CUH_

#include <cuda.h>

#include <cstdint>

#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/cuda/pipeline.cuh"
#include "engine/codecs/cuda/ptx/cluster.cuh"
#include "engine/codecs/cuda/ptx/mbarrier.cuh"
#include "engine/codecs/cuda/ptx/tma.cuh"
#include "engine/codecs/cuda/ptx/wgmma.cuh"
#include "engine/codecs/fold/cuda/bit_layout.h"
#include "engine/codecs/fold/cuda/bit_product_hopper_epilogue.cuh"
#include "engine/codecs/fold/cuda/bit_product_hopper_shape.cuh"

namespace ultrasketch::cuda::bit_product_hopper {

// A K tile's bits of a tile: of its M tiles, or of half as many of gates and then of their ups.
template <typename Shape>
__device__ inline void CopyTileBits(const Maps& maps, const PackedMatrix& matrix, const Grid& grid,
                                    int tile, int k_tile, uint32_t shared, uint32_t barrier) {
  const auto copy = [&](int m_tile, uint32_t to) {
    TmaLoad(maps.bits, k_tile * kBitKTileWords, m_tile, to, barrier);
  };
  const int row_block = tile % grid.row_blocks;
  if (!grid.is_gated) {
    copy(row_block * Shape::kMTiles, shared);
    return;
  }
  constexpr int kGateTiles = Shape::kMTiles / 2;
  const int first_up = static_cast<int>(matrix.rows) / (2 * kMTileRows);
  copy(row_block * kGateTiles, shared);
  copy(first_up + row_block * kGateTiles, shared + kGateTiles * kBitKTileBytes);
}

// One thread. The bits of the first stages are on their way before the kernel that writes the
// inputs has ended.
template <typename Shape>
__device__ inline void ProduceStages(const Maps& maps, const PackedMatrix& matrix, const Grid& grid,
                                     const Work& work, uint32_t stages,
                                     const Shared<Shape>& shared) {
  const MbarrierArray full(shared.full);
  const MbarrierArray empty(shared.empty);
  const auto begin_stage = [&](int slot, int tile, int k_tile) {
    MbarrierArriveExpectTx(full[slot], Shape::kStageBytes);
    CopyTileBits<Shape>(maps, matrix, grid, tile, k_tile,
                        stages + slot * Shape::kStageBytes + Shape::kInputBytes, full[slot]);
  };
  int num_begun = min(Shape::kStages, work.end_k_tile - work.first_k_tile);
  for (int i = 0; i < num_begun; ++i) begin_stage(i, work.first_tile, work.first_k_tile + i);
  WaitForGridDependency();

  Ring ring(Shape::kStages);
  for (int tile = work.first_tile; tile < grid.num_tiles; tile += work.tile_stride) {
    const int first_token = tile / grid.row_blocks * Shape::kTokens;
    for (int k_tile = work.first_k_tile; k_tile < work.end_k_tile; ++k_tile) {
      if (--num_begun < 0) {
        MbarrierWait(empty[ring.slot()], ring.parity() ^ 1);
        begin_stage(ring.slot(), tile, k_tile);
      }
      TmaLoadHiLo(maps.inputs, k_tile * kHalves, first_token,
                  stages + ring.slot() * Shape::kStageBytes, full[ring.slot()]);
      ring.Advance();
    }
  }
}

// The registers of a half K tile's instructions from the words of a lane's four runs of two rows.
template <int kHalf>
__device__ inline void ExpandBits(const uint4 (&words)[4], int quad,
                                  uint32_t (&a)[kInstructionsPerHalf][4]) {
#pragma unroll
  for (int run = 0; run < 4; ++run) {
    const uint32_t low = (kHalf == 0 ? words[run].x : words[run].z) >> quad;
    const uint32_t high = (kHalf == 0 ? words[run].y : words[run].w) >> quad;
    const int instruction = run / 2;
    const int reg = run % 2 * 2;
    a[instruction][reg] = low & kUnitMask;
    a[instruction][reg + 1] = high & kUnitMask;
    a[instruction + 2][reg] = low >> kUnitsPerRun & kUnitMask;
    a[instruction + 2][reg + 1] = high >> kUnitsPerRun & kUnitMask;
  }
}

// sums += bits * inputs of a half K tile; `inputs` is its operand B.
template <int kCount>
__device__ inline void MultiplyHalf(const uint32_t (&a)[kInstructionsPerHalf][4], uint32_t inputs,
                                    int (&accumulators)[kCount]) {
  WgmmaFence();
#pragma unroll
  for (int i = 0; i < kInstructionsPerHalf; ++i) {
    WgmmaU8(
        a[i],
        SmemDescriptor(inputs + i * kInstructionColumns, 0, 8 * kHiLoBytes, SmemSwizzle::k128Bytes),
        accumulators);
  }
  WgmmaCommit();
}

template <typename Shape>
__device__ inline void ConsumeStages(const ProductArguments& arguments, const Grid& grid,
                                     const Work& work, uint8_t* stages, int* tile_accumulators,
                                     const Shared<Shape>& shared) {
  constexpr int kTiles = Shape::kTiles;
  const int block_warp = ThisWarp();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int quad = lane % 4;
  // This warp's in the first tile of its warpgroup.
  const int m_tile = block_warp / 4 * (4 * kTiles) + block_warp % 4;
  const uint8_t* first_words =
      stages + Shape::kInputBytes + m_tile * kBitKTileBytes + lane / 4 * 64;
  const uint32_t first_inputs = SharedAddress(stages);

  const MbarrierArray full(shared.full);
  const MbarrierArray empty(shared.empty);
  const uint32_t accumulators_full = SharedAddress(&shared.accumulators_full);
  const uint32_t accumulators_empty = SharedAddress(&shared.accumulators_empty);
  const bool is_split = grid.log2_splits > 0;
  Ring ring(Shape::kStages);
  int accumulators_parity = 0;
  for (int tile = work.first_tile; tile < grid.num_tiles; tile += work.tile_stride) {
    const auto epilogue_of = [&](int of_tile) {
      return TileEpilogue<Shape>(arguments, grid, of_tile,
                                 is_split ? work.rank * Shape::kConsumerWarps + block_warp
                                          : Shape::kEpilogueWarps + block_warp,
                                 is_split ? Shape::kConsumerWarps << grid.log2_splits
                                          : NumEpilogueWarps<Shape>(grid, work, of_tile));
    };
    TileEpilogue<Shape> epilogue = epilogue_of(tile);
    // On their way while others are multiplied; where there are too many sums to keep them beside,
    // they are loaded after.
    if (!Shape::kHasEpilogueWarps) epilogue.LoadFactors();
    if (tile == work.first_tile) {
      CompilerBarrier();
      WaitForGridDependency();
    }
    if (!Shape::kHasEpilogueWarps) epilogue.LoadTotals();

    int accumulators[kTiles][Shape::kColumns / 2];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < Shape::kColumns / 2; ++i) accumulators[t][i] = 0;
    }
    int previous_stage = 0;
    for (int k_tile = work.first_k_tile; k_tile < work.end_k_tile; ++k_tile) {
      MbarrierWait(full[ring.slot()], ring.parity());
      const uint8_t* words_of_stage = first_words + ring.slot() * Shape::kStageBytes;
      const uint32_t inputs = first_inputs + ring.slot() * Shape::kStageBytes;
      // Two sets, so that one is expanded while the tensor cores read the other.
      uint32_t a[kHalves][kInstructionsPerHalf][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        uint4 words[4];
#pragma unroll
        for (int run = 0; run < 4; ++run) {
          words[run] =
              *reinterpret_cast<const uint4*>(words_of_stage + t * 4 * kBitKTileBytes + run * 16);
        }
        WgmmaWait<1>();
        ExpandBits<0>(words, quad, a[0]);
        MultiplyHalf(a[0], inputs, accumulators[t]);
        WgmmaWait<1>();
        // All of the K tile before is done.
        if (t == 0 && k_tile > work.first_k_tile && lane == 0)
          MbarrierArrive(empty[previous_stage]);
        ExpandBits<1>(words, quad, a[1]);
        MultiplyHalf(a[1], inputs + Shape::kHalfBytes, accumulators[t]);
      }
      previous_stage = ring.slot();
      ring.Advance();
    }
    WgmmaWait<0>();
    if (lane == 0) MbarrierArrive(empty[previous_stage]);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) FenceAccumulators(accumulators[t]);

    if (!is_split) MbarrierWait(accumulators_empty, accumulators_parity ^ 1);
    StoreAccumulators<Shape>(accumulators, m_tile * kMTileRows + lane / 4, quad, tile_accumulators);
    if (!is_split) MbarrierArrive(accumulators_full);
    if (is_split || NumEpilogueWarps<Shape>(grid, work, tile) > Shape::kEpilogueWarps) {
      if (Shape::kHasEpilogueWarps) {
        epilogue = epilogue_of(Launder(tile));
        epilogue.LoadFactors();
        epilogue.LoadTotals();
      }
      if (is_split) {
        ClusterSync();
        epilogue.WriteSplit(tile_accumulators, grid.log2_splits);
      } else {
        MbarrierWait(accumulators_full, accumulators_parity);
        epilogue.Write(tile_accumulators);
        if (!Shape::kHasEpilogueWarps) MbarrierArrive(accumulators_empty);
      }
    }
    accumulators_parity ^= 1;
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
  LaunchDependents();
  if (threadIdx.x == 0) {
    InitRing(MbarrierArray(shared.full), MbarrierArray(shared.empty), Shape::kStages,
             /*full_arrivals=*/1, /*empty_arrivals=*/Shape::kConsumerWarps);
    MbarrierInit(SharedAddress(&shared.accumulators_full), Shape::kConsumerThreads);
    MbarrierInit(SharedAddress(&shared.accumulators_empty),
                 32 * (Shape::kHasEpilogueWarps ? Shape::kEpilogueWarps : Shape::kConsumerWarps));
    FenceProxyAsync();
  } else if (threadIdx.x == Shape::kConsumerThreads) {
    PrefetchTensorMap(maps.bits);
    PrefetchTensorMap(maps.inputs);
  }
  __syncthreads();
  auto* tile_accumulators = reinterpret_cast<int*>(stages + Shape::kStages * Shape::kStageBytes);
  const Work work = WorkOf(arguments, grid);
  if (threadIdx.x >= Shape::kConsumerThreads) {
    if constexpr (Shape::kHasEpilogueWarps) {
      WarpgroupRegDealloc<56>();
      const int epilogue_warp = ThisWarp() - Shape::kConsumerWarps - 1;
      if (epilogue_warp >= 0 && grid.log2_splits == 0) {
        RunEpilogueWarp<Shape>(arguments, grid, work, tile_accumulators, epilogue_warp, shared);
      }
    }
    if (threadIdx.x == Shape::kConsumerThreads) {
      ProduceStages<Shape>(maps, arguments.matrix, grid, work, SharedAddress(stages), shared);
    }
    __syncwarp();
    // As often as the consumer warps.
    if (grid.log2_splits > 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ClusterArriveRelaxed();
        ClusterWait();
      }
    }
  } else {
    if constexpr (Shape::kHasEpilogueWarps) WarpgroupRegAlloc<224>();
    ConsumeStages<Shape>(arguments, grid, work, stages, tile_accumulators, shared);
  }
#endif
}

}  // namespace ultrasketch::cuda::bit_product_hopper

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_CUH_
