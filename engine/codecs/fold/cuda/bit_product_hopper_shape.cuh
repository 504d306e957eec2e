// Blocks of the products of sign bits by wgmma (bit_product_hopper.cuh): their shapes, what their
// warps share, and how the work is divided.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_SHAPE_CUH_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_SHAPE_CUH_

#include <cuda.h>

#include <algorithm>
#include <cstdint>

#include "engine/codecs/cuda/barriers.cuh"
#include "engine/codecs/fold/cuda/bit_layout.h"
#include "engine/codecs/fold/cuda/bit_product.cuh"

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
  // Of the sums, where a block has a tile for itself. Every thread arrives, so that racecheck can
  // tell who has written what.
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

}  // namespace ultrasketch::cuda::bit_product_hopper

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_SHAPE_CUH_
