// Launching products of sign bits by wgmma: where TMA finds what it copies, and which shape of
// block and how many splits are quickest.
#include <cuda.h>

#include <algorithm>
#include <bit>
#include <cstdint>

#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/cuda/tensor_map.h"
#include "engine/codecs/fold/cuda/bit_product_hopper.h"

#if defined(US_BUILD_SM_90A)
#include "engine/codecs/fold/cuda/bit_product_hopper.cuh"
#endif

namespace ultrasketch::cuda {

#if defined(US_BUILD_SM_90A)
namespace {

using namespace bit_product_hopper;  // NOLINT(google-build-using-namespace): the kernel's parts

template <typename Shape>
Grid GridOf(const ProductArguments& arguments, int num_splits) {
  const int64_t halves = arguments.is_gated ? 2 : 1;
  const int64_t num_outputs = arguments.matrix.rows / halves;
  const int64_t block_outputs = Shape::kRows / halves;
  const int64_t row_blocks = (num_outputs + block_outputs - 1) / block_outputs;
  const int64_t token_blocks = (arguments.num_tokens + Shape::kTokens - 1) / Shape::kTokens;
  return {.row_blocks = static_cast<int>(row_blocks),
          .num_tiles = static_cast<int>(row_blocks * token_blocks),
          .log2_splits = std::countr_zero(static_cast<unsigned>(num_splits)),
          .is_gated = arguments.is_gated,
          .num_outputs = static_cast<int>(num_outputs)};
}

template <typename Shape>
cudaError_t Launch(const ProductArguments& arguments, int num_splits, cudaStream_t stream) {
  const EncodeTensorMap encode = FindEncodeTensorMap();
  if (encode == nullptr) return cudaErrorNotSupported;
  cudaError_t error = cudaFuncSetAttribute(
      BitProductHopper<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
  if (error != cudaSuccess) return error;
  Maps maps;
  error = EncodeHiLoMap(encode, arguments, Shape::kTokens, kHalves, &maps.inputs);
  if (error != cudaSuccess) return error;
  const int64_t num_bit_k_tiles = arguments.matrix.num_k_tiles / kKTilesPerBitKTile;
  error =
      EncodeWeightMap(encode, arguments.matrix, num_bit_k_tiles * kBitKTileBytes, kBitKTileBytes,
                      Shape::kMTiles / (arguments.is_gated ? 2 : 1), sizeof(uint32_t), &maps.bits);
  if (error != cudaSuccess) return error;
  const Grid grid = GridOf<Shape>(arguments, num_splits);
  const int64_t num_blocks = num_splits > 1
                                 ? grid.num_tiles * num_splits
                                 : std::min(grid.num_tiles, arguments.num_sms * Shape::kBlocks);
  return LaunchClusters(BitProductHopper<Shape>, dim3(static_cast<unsigned>(num_blocks)),
                        num_splits, Shape::kThreads, Shape::kSharedBytes, stream, arguments, maps,
                        grid);
}

// How many clusters of kSplits blocks the device holds at once; 0 if none. Asked once: the devices
// of a machine are alike.
template <typename Shape, int kSplits>
int NumClustersAtOnce() {
  static const int count =
      CountClustersAtOnce(BitProductHopper<Shape>, kSplits, Shape::kThreads, Shape::kSharedBytes);
  return count;
}

struct Choice {
  int64_t cost = INT64_MAX;
  cudaError_t (*launch)(const ProductArguments&, int num_splits, cudaStream_t) = nullptr;
  int num_splits = 1;
};

// By the cycles from a kernel's first K tile to its end, about, as measured on an H200.
template <typename Shape, int kSplits>
void ConsiderSplits(const ProductArguments& arguments, Choice& choice) {
  const int64_t num_k_tiles = arguments.matrix.num_k_tiles / kKTilesPerBitKTile;
  if (kSplits > num_k_tiles) return;
  const int64_t num_sms = arguments.num_sms;
  const int64_t num_blocks = GridOf<Shape>(arguments, kSplits).num_tiles * kSplits;
  const int64_t blocks_at_once = kSplits == 1
                                     ? num_sms * Shape::kBlocks
                                     : int64_t{NumClustersAtOnce<Shape, kSplits>()} * kSplits;
  if (blocks_at_once == 0) return;
  const int64_t rounds = (num_blocks + blocks_at_once - 1) / blocks_at_once;
  const int64_t blocks_each = (std::min(num_blocks, blocks_at_once) + num_sms - 1) / num_sms;

  // A K tile of a block that has the SM for itself waits for barriers, loads and the tensor cores
  // in turn.
  constexpr int64_t kAloneCycles = 400 + Shape::kTiles * (250 + 7 * Shape::kTokens);
  // Several are bound by what they share: the tensor cores, issue, reading inputs.
  constexpr int64_t kUnits = Shape::kTiles * Shape::kWarpgroups;
  constexpr int64_t kTensorCycles = kUnits * kInstructionsPerBitKTile * Shape::kTokens * 5 / 4;
  constexpr int64_t kIssueCycles = kUnits * 220;
  constexpr int64_t kReadCycles = Shape::kStageBytes / 30;
  constexpr int64_t kSharedCycles = std::max({kTensorCycles, kIssueCycles, kReadCycles});
  // The outputs of a tile; then the sums of a cluster, and the start of the clusters of a round.
  constexpr int64_t kTileCycles = 600 + Shape::kRows * Shape::kTokens / (16 * kSplits);
  constexpr int64_t kClusterCycles = kSplits == 1 ? 0 : 1500;

  const int64_t k_tiles_each = (num_k_tiles + kSplits - 1) / kSplits;
  const int64_t cost =
      rounds * (k_tiles_each * std::max(kAloneCycles, blocks_each * kSharedCycles) + kTileCycles +
                kClusterCycles);
  if (cost < choice.cost) choice = {cost, Launch<Shape>, kSplits};
}

template <typename Shape>
void Consider(const ProductArguments& arguments, Choice& choice) {
  ConsiderSplits<Shape, 1>(arguments, choice);
  ConsiderSplits<Shape, 2>(arguments, choice);
  ConsiderSplits<Shape, 4>(arguments, choice);
  ConsiderSplits<Shape, kMaxSplits>(arguments, choice);
}

}  // namespace

bool HasBitProductHopper() { return IsHopper(); }

cudaError_t LaunchBitProductHopper(const ProductArguments& arguments, cudaStream_t stream) {
  Choice choice;
  if (arguments.num_tokens <= 16) {
    Consider<HopperShape<1, 1, 16, 4>>(arguments, choice);
    Consider<HopperShape<1, 2, 16, 2>>(arguments, choice);
  } else if (arguments.num_tokens <= 32) {
    Consider<HopperShape<1, 1, 32, 3>>(arguments, choice);
    Consider<HopperShape<1, 2, 32, 2>>(arguments, choice);
  } else {
    Consider<HopperShape<1, 1, 64, 2>>(arguments, choice);
    Consider<HopperShape<1, 2, 64, 1>>(arguments, choice);
    Consider<HopperShape<2, 2, 64, 1>>(arguments, choice);
  }
  return choice.launch(arguments, choice.num_splits, stream);
}

#else

bool HasBitProductHopper() { return false; }
cudaError_t LaunchBitProductHopper(const ProductArguments&, cudaStream_t) {
  return cudaErrorNotSupported;
}

#endif

}  // namespace ultrasketch::cuda
