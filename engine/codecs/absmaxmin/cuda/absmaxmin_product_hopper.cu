// Launching products with an AbsMaxMin sketch by wgmma: where TMA finds what it copies, and which
// kernel and which tile are quickest.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "engine/codecs/absmaxmin/cuda/absmaxmin_product_hopper.h"
#include "engine/codecs/cuda/tensor_map.h"

#if defined(US_BUILD_SM_90A)
#include "engine/codecs/absmaxmin/cuda/absmaxmin_product_hopper.cuh"
#endif

namespace ultrasketch::cuda {

#if defined(US_BUILD_SM_90A)
namespace {

using namespace absmaxmin_product_hopper;  // NOLINT(google-build-using-namespace): the kernels'
                                           // parts

// Boxes of `num_tokens` packed inputs by 64 columns; tokens past the last are zero.
cudaError_t DescribeInputs(const ProductArguments& arguments, int num_tokens, CUtensorMap* map) {
  const EncodeTensorMap encode = FindEncodeTensorMap();
  if (encode == nullptr) return cudaErrorNotSupported;
  const int64_t num_k_tiles = arguments.matrix.num_k_tiles;
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(num_k_tiles * kKTileColumns),
                                static_cast<cuuint64_t>(arguments.num_tokens)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(PackedInputBytes(num_k_tiles))};
  const cuuint32_t box[] = {kKTileColumns, static_cast<cuuint32_t>(num_tokens)};
  const cuuint32_t element_strides[] = {1, 1};
  const CUresult result = encode(
      map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, const_cast<void*>(arguments.packed_input), extents,
      strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

int64_t DivideUp(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// How many clusters the device holds at once, with kBlocks blocks to an SM; 0 if none. Asked once:
// the devices of a machine are alike.
template <typename Tile>
int ClustersOfDevice(int max_shared_bytes) {
  static const int count = CountClustersAtOnce(HopperProduct<Tile>, Tile::kCluster, Tile::kThreads,
                                               max_shared_bytes / Tile::kBlocks - 4096);
  return count;
}

// Clusters of the tile that are at work at once.
template <typename Tile>
int64_t NumAtOnce(const ProductArguments& arguments, int max_shared_bytes) {
  const int64_t blocks = Tile::BlocksAtOnce(arguments.matrix.buckets, max_shared_bytes);
  if constexpr (Tile::kCluster > 1) {
    return ClustersOfDevice<Tile>(max_shared_bytes) * blocks / Tile::kBlocks;
  } else {
    return arguments.num_sms * blocks;
  }
}

template <typename Tile>
int64_t TokenGroups(const ProductArguments& arguments) {
  return DivideUp(arguments.num_tokens, Tile::kTokens * Tile::kDecoders);
}

template <typename Tile>
int64_t NumTiles(const ProductArguments& arguments) {
  return DivideUp(arguments.matrix.rows, Tile::kRows * Tile::kReaders) *
         TokenGroups<Tile>(arguments);
}

// Blocks of an SM: one where there are no more than SMs.
template <typename Tile>
int BlocksEach(const ProductArguments& arguments, int max_shared_bytes) {
  const int at_once = Tile::BlocksAtOnce(arguments.matrix.buckets, max_shared_bytes);
  return NumTiles<Tile>(arguments) * Tile::kCluster <= arguments.num_sms ? std::min(at_once, 1)
                                                                         : at_once;
}

template <typename Tile>
HopperPlan PlanOf(const ProductArguments& arguments, int max_shared_bytes) {
  const BucketTables& tables = arguments.matrix.buckets;
  const int64_t num_tiles = NumTiles<Tile>(arguments);
  // Each takes a tile or more.
  const int64_t num_clusters =
      Tile::kOneTile ? num_tiles
                     : std::min(num_tiles, NumAtOnce<Tile>(arguments, max_shared_bytes));
  return {Tile::NumStages(tables, max_shared_bytes, BlocksEach<Tile>(arguments, max_shared_bytes)),
          static_cast<int>(TokenGroups<Tile>(arguments)), static_cast<int>(num_clusters),
          static_cast<int>(num_tiles / num_clusters), static_cast<int>(num_tiles % num_clusters)};
}

template <typename Tile>
cudaError_t Launch(const ProductArguments& arguments, int max_shared_bytes, cudaStream_t stream) {
  const HopperPlan plan = PlanOf<Tile>(arguments, max_shared_bytes);
  auto shared_bytes =
      static_cast<int>(Tile::SharedBytes(arguments.matrix.buckets, plan.num_stages));
  // Where there is to be one, so much that no two come to lie on an SM.
  if (BlocksEach<Tile>(arguments, max_shared_bytes) == 1) {
    shared_bytes = std::max(shared_bytes, max_shared_bytes / 2 + 1);
  }
  cudaError_t error = cudaFuncSetAttribute(
      HopperProduct<Tile>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  CUtensorMap inputs;
  error = DescribeInputs(arguments, Tile::kReadTokens, &inputs);
  if (error != cudaSuccess) return error;
  return LaunchClusters(HopperProduct<Tile>,
                        dim3(static_cast<unsigned>(plan.num_clusters * Tile::kCluster)),
                        Tile::kCluster, Tile::kThreads, static_cast<size_t>(shared_bytes), stream,
                        arguments, inputs, plan);
}

// Cycles of the whole product, about. Those of a K tile: of a block that has an SM for itself, or
// of what the blocks of one share, an eighth more than if it were never idle.
template <typename Tile>
int64_t Cost(const ProductArguments& arguments, int max_shared_bytes) {
  const int64_t num_at_once = NumAtOnce<Tile>(arguments, max_shared_bytes);
  if (num_at_once == 0) return INT64_MAX;
  const int64_t num_tiles = NumTiles<Tile>(arguments);
  const int64_t num_blocks = std::min(num_tiles, num_at_once) * Tile::kCluster;
  const int64_t blocks_each = DivideUp(num_blocks, arguments.num_sms);

  // Decoding a unit by one warp, less in pairs; a warpgroup's wait, fence and first instruction.
  constexpr int64_t kUnitCycles = Tile::kProducerBlocks == 1 ? 1000 : 600;
  constexpr int64_t kTurnCycles = (Tile::kProducersFence ? 300 : 400) / Tile::kLargeBatch;
  constexpr int64_t kAloneCycles =
      std::max(kUnitCycles * Tile::kUnits / Tile::kProducerWarps, kTurnCycles);

  constexpr int64_t kTensorCycles = Tile::kWarpgroups * std::max(2 * Tile::kTokens, 128);
  constexpr int64_t kSentBytes = (Tile::kDecoders - 1) * Tile::kDecodedBytes;
  // At 128 bytes: the operands of the tensor cores, inputs and weights written, the buckets and
  // columns of the units, whose loads meet in banks, and weights sent.
  constexpr int64_t kMemoryCycles = Tile::kWarpgroups * 4 * (16 + Tile::kTokens / 4) +
                                    Tile::kStageBytes / 128 + Tile::kUnits * 24 + kSentBytes / 128;
  // From L2 an SM gets 24 bytes when all read, or else twice that.
  constexpr int64_t kReadBytes = Tile::kInputBytes / Tile::kReaders;
  const int64_t read_cycles =
      std::max(num_blocks * kReadBytes / (24 * arguments.num_sms), blocks_each * kReadBytes / 48);
  const int64_t common_cycles = std::max(
      blocks_each * std::max({kTensorCycles, kMemoryCycles, kSentBytes / 16}), read_cycles);

  // Until the first product, and for the outputs of a tile.
  constexpr int64_t kStartCycles = Tile::kCluster > 1 ? 7000 : 5000;
  constexpr int64_t kOutputCycles = 1500 + Tile::kRows * Tile::kTokens / 8;
  return kStartCycles +
         DivideUp(num_tiles, num_at_once) *
             (arguments.matrix.num_k_tiles * std::max(kAloneCycles, common_cycles * 9 / 8) +
              kOutputCycles);
}

// The tile that the environment's ULTRASKETCH_CUDA_SKETCH_TILE names, for comparisons: row blocks,
// tokens, decoders and readers, as in "4,256,2,2". It is taken wherever it fits.
struct NamedTile {
  int parts[4] = {};
  bool is_set = false;
};
const NamedTile& TileOfEnvironment() {
  static const NamedTile tile = [] {
    NamedTile named;
    const char* value = std::getenv("ULTRASKETCH_CUDA_SKETCH_TILE");
    named.is_set =
        value != nullptr && std::sscanf(value, "%d,%d,%d,%d", &named.parts[0], &named.parts[1],
                                        &named.parts[2], &named.parts[3]) == 4;
    return named;
  }();
  return tile;
}

class TileChooser {
 public:
  using LaunchTile = cudaError_t (*)(const ProductArguments&, int max_shared_bytes, cudaStream_t);

  TileChooser(const ProductArguments& arguments, int max_shared_bytes)
      : arguments_(arguments), max_shared_bytes_(max_shared_bytes) {
    if (TileOfEnvironment().is_set) {
      only_named_ = true;
      ConsiderUpTo64<8>();
      ConsiderUpTo64<16>();
      ConsiderUpTo64<32>();
      ConsiderUpTo64<64>();
      ConsiderMany();
      if (launch_ != nullptr) return;
      only_named_ = false;
    }
    if (arguments.num_tokens <= 8) {
      ConsiderUpTo64<8>();
    } else if (arguments.num_tokens <= 16) {
      ConsiderUpTo64<16>();
    } else if (arguments.num_tokens <= 32) {
      ConsiderUpTo64<32>();
    } else if (arguments.num_tokens <= 64) {
      ConsiderUpTo64<64>();
      Consider<1, 32, 1, 1>();  // of few rows: twice as many blocks
    } else {
      ConsiderMany();
    }
  }

  // Null: none fits.
  LaunchTile launch() const { return launch_; }

 private:
  template <int kTokens>
  void ConsiderUpTo64() {
    Consider<2, kTokens, 1, 1>();
    Consider<1, kTokens, 1, 1>();
  }
  void ConsiderMany() {
    Consider<4, 256, 2, 2>();
    Consider<4, 256, 2, 1>();
    Consider<4, 192, 2, 2>();
    Consider<4, 192, 1, 2>();
    Consider<4, 128, 2, 2>();
    Consider<4, 128, 1, 2>();
    Consider<2, 128, 2, 2>();
    Consider<2, 128, 1, 2>();
    Consider<1, 64, 1, 1>();
  }

  template <int kRowBlocks, int kTokens, int kDecoders, int kReaders>
  void Consider() {
    constexpr int kParts[] = {kRowBlocks, kTokens, kDecoders, kReaders};
    if (only_named_ && !std::equal(kParts, kParts + 4, TileOfEnvironment().parts)) return;
    using Tile = HopperTile<kRowBlocks, kTokens, kDecoders, kReaders>;
    const int64_t cost = Cost<Tile>(arguments_, max_shared_bytes_);
    if (cost >= cost_) return;
    cost_ = cost;
    launch_ = Launch<Tile>;
  }

  const ProductArguments& arguments_;
  int max_shared_bytes_;
  bool only_named_ = false;
  int64_t cost_ = INT64_MAX;
  LaunchTile launch_ = nullptr;
};

}  // namespace

bool FitsHopperProduct(const ProductArguments& arguments, int compute_capability,
                       int max_shared_bytes) {
  return compute_capability == 90 && TileChooser(arguments, max_shared_bytes).launch() != nullptr;
}

cudaError_t LaunchHopperProduct(const ProductArguments& arguments, int max_shared_bytes,
                                cudaStream_t stream) {
  return TileChooser(arguments, max_shared_bytes).launch()(arguments, max_shared_bytes, stream);
}

#else

bool FitsHopperProduct(const ProductArguments&, int, int) { return false; }
cudaError_t LaunchHopperProduct(const ProductArguments&, int, cudaStream_t) {
  return cudaErrorNotSupported;
}

#endif

}  // namespace ultrasketch::cuda
