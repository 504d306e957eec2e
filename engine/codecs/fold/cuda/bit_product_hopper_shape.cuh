// Blocks of the products of sign bits by wgmma (bit_product_hopper.cuh): their shapes, what their
// warps share, and how the work is divided.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_SHAPE_CUH_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_SHAPE_CUH_

#include <cuda.h>

#include <algorithm>
#include <cstdint>

#include "engine/codecs/cuda/ptx/cluster.cuh"
#include "engine/codecs/cuda/ptx/mbarrier.cuh"
#include "engine/codecs/fold/cuda/bit_layout.h"
#include "engine/codecs/fold/cuda/bit_product.cuh"

namespace ultrasketch::cuda::bit_product_hopper {

inline constexpr int kWarpgroupRows = 64;
inline constexpr int kHalves = kBitKTileColumns / kHiLoBytes;
inline constexpr int kInstructionsPerHalf = kInstructionsPerBitKTile / kHalves;
inline constexpr int kInstructionColumns = 32;
inline constexpr int kBitKTileWords = kBitKTileBytes / 4;
// Swizzled operands begin at multiples of 1024.
inline constexpr int kAlignment = 1024;
// Shared memory of an SM, and what a block takes of it besides stages and sums: the system's, and
// barriers.
inline constexpr int kSmBytes = 228 * 1024;
inline constexpr int kSystemBytes = 1024;
inline constexpr int kBarrierBytes = 256;
inline constexpr int kMaxSplits = 8;

// kBlocks: to an SM.
template <int kTilesOf, int kWarpgroupsOf, int kTokensOf, int kBlocksOf>
struct HopperShape {
  static constexpr int kTiles = kTilesOf;  // of 64 rows, for each warpgroup
  static constexpr int kWarpgroups = kWarpgroupsOf;
  static constexpr int kTokens = kTokensOf;
  static constexpr int kBlocks = kBlocksOf;
  static constexpr int kColumns = 2 * kTokens;
  static constexpr int kRows = kWarpgroupRows * kTiles * kWarpgroups;
  static constexpr int kMTiles = kRows / kMTileRows;
  static constexpr int kConsumerWarps = 4 * kWarpgroups;
  static constexpr int kConsumerThreads = 32 * kConsumerWarps;
  // Epilogue warps: three that share a warpgroup with the producer warp, from which registers move
  // to the consumers. Without them, the consumers write.
  static constexpr bool kHasEpilogueWarps = kTiles > 1;
  static constexpr int kEpilogueWarps = kHasEpilogueWarps ? 3 : 0;
  static constexpr int kThreads = kConsumerThreads + 32 + 32 * kEpilogueWarps;
  static constexpr int kHalfBytes = kColumns * kHiLoBytes;
  static constexpr int kInputBytes = kHalves * kHalfBytes;
  static constexpr int kStageBytes = kInputBytes + kMTiles * kBitKTileBytes;
  static_assert(kStageBytes % kAlignment == 0);
  static constexpr int kAccumulatorBytes = kRows * kTokens * int{sizeof(int)};
  static constexpr int kStages = std::min(
      8, (kSmBytes / kBlocks - kSystemBytes - kBarrierBytes - kAlignment - kAccumulatorBytes) /
             kStageBytes);
  static constexpr int kSharedBytes = kAlignment + kStages * kStageBytes + kAccumulatorBytes;
};

template <typename Shape>
struct Shared {
  Mbarrier full[Shape::kStages];
  Mbarrier empty[Shape::kStages];
  // The accumulators' barriers, where a block has a tile for itself. Every thread arrives, so that
  // racecheck can tell who has written what.
  Mbarrier accumulators_full;
  Mbarrier accumulators_empty;
  static_assert((2 * Shape::kStages + 2) * int{sizeof(Mbarrier)} <= kBarrierBytes);
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

// What a block does: tiles first_tile, first_tile + tile_stride and so on, of each the bit K tiles
// [first_k_tile, end_k_tile).
struct Work {
  int rank;
  int first_tile;
  int tile_stride;
  int first_k_tile;
  int end_k_tile;
};

__device__ inline Work WorkOf(const ProductArguments& arguments, const Grid& grid) {
  const int num_k_tiles = static_cast<int>(arguments.matrix.num_k_tiles) / kKTilesPerBitKTile;
  const int rank = grid.log2_splits > 0 ? ClusterRank() : 0;
  return {rank, static_cast<int>(blockIdx.x >> grid.log2_splits),
          static_cast<int>(gridDim.x >> grid.log2_splits), rank * num_k_tiles >> grid.log2_splits,
          (rank + 1) * num_k_tiles >> grid.log2_splits};
}

}  // namespace ultrasketch::cuda::bit_product_hopper

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_SHAPE_CUH_
