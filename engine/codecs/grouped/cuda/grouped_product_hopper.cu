// Products with group-quantized integers by wgmma: an output head's, with more than a few tokens.
//
//             up to 64 tokens
//   64 rows  [ consumer warpgroup 0 ]     totals in registers; a producer warp fills a ring of
//   64 rows  [ consumer warpgroup 1 ]     stages by TMA: two K tiles of the weights, as they lie,
//                                         and of the inputs' hi and lo bytes
//
// Operand A is the weights, in registers; operand B the inputs, a token being two columns. A unit
// of work is a K tile, a group's 64 columns, of 32 tokens: two instructions of a warpgroup, whose
// sums it then scales and adds, some 50 instructions of a warp; meanwhile the tensor cores are at
// the next units, or at the other warpgroup's. All of a stage's units are done with before the next
// one's begin: the compiler lets none of these instructions run on past a loop's end whose sums are
// read there. Blocks stay and take tile after tile, so that the ring is filled for the next one
// while the outputs of one are written.
//
// Bound, with 64 tokens: 128 rows of a K tile are 8.4 KB of weights, which take 270 cycles of an
// SM's share of 4.2 TB/s, 256 of its tensor cores, and some 350 issue slots of each of its
// schedulers.
#include <cuda.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "engine/codecs/cuda/tensor_map.h"
#include "engine/codecs/grouped/cuda/grouped_product_hopper.h"

#if defined(US_BUILD_SM_90A)
#include "engine/codecs/cuda/byte_product.cuh"
#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/cuda/pipeline.cuh"
#include "engine/codecs/cuda/ptx/mbarrier.cuh"
#include "engine/codecs/cuda/ptx/tma.cuh"
#include "engine/codecs/cuda/ptx/wgmma.cuh"
#include "engine/codecs/grouped/cuda/grouped_weights.cuh"
#endif

namespace ultrasketch::cuda {

#if defined(US_BUILD_SM_90A)
namespace {

constexpr int kStageKTiles = 2;  // rows have a multiple of them
static_assert(kStageKTiles * kKTileColumns == kHiLoBytes);
constexpr int kUnitTokens = 32;
// Swizzled operands begin at multiples of 1024.
constexpr int kAlignment = 1024;
constexpr int kMaxSharedBytes = 227 * 1024;  // that a block may have
constexpr int kBarrierBytes = 128;

// A block's tile: of kTokenUnits times kUnitTokens tokens.
template <typename WeightsOf, int kTokenUnitsOf>
struct GroupedShape {
  using Weights = WeightsOf;
  static constexpr int kTokenUnits = kTokenUnitsOf;
  static constexpr int kTokens = kTokenUnits * kUnitTokens;
  static constexpr int kConsumerWarps = 8;
  static constexpr int kConsumerThreads = 32 * kConsumerWarps;
  // The producer warp has a warpgroup, from which registers move to the consumers.
  static constexpr int kThreads = kConsumerThreads + 128;
  static constexpr int kMTiles = kConsumerWarps;
  static constexpr int kKTileBytes = Weights::kIntegerBytes + kKTileScaleBytes;  // of an M tile
  static constexpr int kWeightBytes = kMTiles * kKTileBytes;                     // of a K tile
  static constexpr int kUnitBytes = kUnitTokens * 2 * kHiLoBytes;
  static constexpr int kInputBytes = kTokenUnits * kUnitBytes;
  static constexpr int kCopiedBytes = kInputBytes + kStageKTiles * kWeightBytes;
  static constexpr int kStageBytes = (kCopiedBytes + kAlignment - 1) / kAlignment * kAlignment;
  static_assert(kWeightBytes % 128 == 0);
  static constexpr int kStages =
      std::min(8, (kMaxSharedBytes - kBarrierBytes - kAlignment) / kStageBytes);
  static constexpr int kSharedBytes = kAlignment + kStages * kStageBytes;
};

template <typename Shape>
struct GroupedShared {
  Mbarrier full[Shape::kStages];
  Mbarrier empty[Shape::kStages];
  static_assert(2 * Shape::kStages * int{sizeof(Mbarrier)} <= kBarrierBytes);
};

// Where weights, in units of 8 bytes, and inputs are.
struct GroupedMaps {
  CUtensorMap weights;
  CUtensorMap inputs;
};
constexpr int kWeightUnit = 8;

// Tile `tile` has tokens from (tile % token_blocks) * kTokens on: tiles that follow each other have
// the same rows, which they find in L2.
struct GroupedGrid {
  int token_blocks;
  int num_tiles;
};

// One thread. The weights of the first stages are on their way before the kernel that writes the
// inputs has ended. M tiles and tokens past the last are zero.
template <typename Shape>
__device__ inline void ProduceStages(const PackedMatrix& matrix, const GroupedMaps& maps,
                                     const GroupedGrid& grid, uint32_t stages,
                                     const GroupedShared<Shape>& shared) {
  const MbarrierArray full(shared.full);
  const MbarrierArray empty(shared.empty);
  const int num_rounds = static_cast<int>(matrix.num_k_tiles) / kStageKTiles;
  const auto begin_stage = [&](int slot, int tile, int round) {
    MbarrierArriveExpectTx(full[slot], Shape::kCopiedBytes);
    const int m_tile = tile / grid.token_blocks * Shape::kMTiles;
    const uint32_t weights = stages + slot * Shape::kStageBytes + Shape::kInputBytes;
#pragma unroll
    for (int k_tile = 0; k_tile < kStageKTiles; ++k_tile) {
      TmaLoad(maps.weights, (round * kStageKTiles + k_tile) * (Shape::kKTileBytes / kWeightUnit),
              m_tile, weights + k_tile * Shape::kWeightBytes, full[slot]);
    }
  };
  const int first_tile = static_cast<int>(blockIdx.x);
  int num_begun = min(Shape::kStages, num_rounds);
  for (int i = 0; i < num_begun; ++i) begin_stage(i, first_tile, i);
  WaitForGridDependency();

  Ring ring(Shape::kStages);
  for (int tile = first_tile; tile < grid.num_tiles; tile += static_cast<int>(gridDim.x)) {
    const int first_token = tile % grid.token_blocks * Shape::kTokens;
    for (int round = 0; round < num_rounds; ++round) {
      if (--num_begun < 0) {
        MbarrierWait(empty[ring.slot()], ring.parity() ^ 1);
        begin_stage(ring.slot(), tile, round);
      }
      TmaLoadHiLo(maps.inputs, round, first_token, stages + ring.slot() * Shape::kStageBytes,
                  full[ring.slot()]);
      ring.Advance();
    }
  }
}

template <typename Shape>
__device__ inline void ConsumeStages(const ProductArguments& arguments, const GroupedGrid& grid,
                                     const uint8_t* stages, const GroupedShared<Shape>& shared) {
  using Weights = typename Shape::Weights;
  constexpr int kTokensOfLane = kUnitTokens / 4;  // of a unit
  constexpr int kInstructionColumns = 32;
  constexpr int kUnits = Shape::kTokenUnits;
  constexpr int kStageUnits = kStageKTiles * kUnits;
  constexpr int kBuffers = kUnits + 1;  // units under way at a time
  const PackedMatrix& matrix = arguments.matrix;
  const int warp = ThisWarp();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto num_k_tiles = static_cast<int>(matrix.num_k_tiles);
  const auto num_tokens = static_cast<int>(arguments.num_tokens);
  const uint8_t* const first_weights = stages + Shape::kInputBytes + warp * Shape::kKTileBytes;
  const uint64_t first_inputs =
      SmemDescriptor(SharedAddress(stages), 0, 8 * kHiLoBytes, SmemSwizzle::k128Bytes);
  const MbarrierArray full(shared.full);
  const MbarrierArray empty(shared.empty);
  WaitForGridDependency();

  Ring ring(Shape::kStages);
  uint32_t a[kStageKTiles][kGroupInstructions][4];
  uint32_t scales[kStageKTiles];
  const auto load_k_tile = [&](int k_tile) {
    const uint8_t* const weights =
        first_weights + ring.slot() * Shape::kStageBytes + k_tile * Shape::kWeightBytes;
    Weights::LoadOperands(weights, lane, a[k_tile]);
    scales[k_tile] = LoadGroupScales<Weights>(weights, lane);
  };
  int scaled_token = -1;
  float scale_of_lane[kUnits] = {};  // lane l has that of token l of a unit
  for (int tile = static_cast<int>(blockIdx.x); tile < grid.num_tiles;
       tile += static_cast<int>(gridDim.x)) {
    const int first_token = tile % grid.token_blocks * Shape::kTokens;
    if (first_token != scaled_token) {
      scaled_token = first_token;
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        const int token = min(first_token + unit * kUnitTokens + lane, num_tokens - 1);
        scale_of_lane[unit] = SumTotals(TrailerOf(arguments, token)).scale;
      }
    }

    // Totals of this lane's two rows and its tokens, in the order of tile_layout.h.
    float2 totals[kUnits][kTokensOfLane] = {};
    float2 k_split_totals[kUnits][kTokensOfLane] = {};
    int k_split = 0;
    int k_split_end = KSplitBegin(1, num_k_tiles);
    const auto finish_k_tile = [&](int num_k_tiles_done) {
      if (num_k_tiles_done < k_split_end) return;
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
#pragma unroll
        for (int i = 0; i < kTokensOfLane; ++i) {
          float2& total = totals[unit][i];
          float2& added = k_split_totals[unit][i];
          total = {__fadd_rn(total.x, added.x), __fadd_rn(total.y, added.y)};
          added = {};
        }
      }
      // K splits without a K tile end with the one before.
      while (k_split < kNumKSplits - 1 && k_split_end <= num_k_tiles_done) {
        ++k_split;
        k_split_end = KSplitBegin(k_split + 1, num_k_tiles);
      }
    };
    MbarrierWait(full[ring.slot()], ring.parity());
    load_k_tile(0);
#pragma unroll 1
    for (int first_k_tile = 0; first_k_tile < num_k_tiles; first_k_tile += kStageKTiles) {
      const int slot = ring.slot();
      const uint64_t inputs = AdvanceDescriptor(first_inputs, slot * Shape::kStageBytes);
      const float2 first_factors = GroupScales<Weights>(scales[0], matrix.has_half_scales);
      int accumulators[kBuffers][4 * kTokensOfLane];
      const auto multiply = [&](int index) {
        const int k_tile = index / kUnits;
        const uint64_t operand =
            AdvanceDescriptor(inputs, index % kUnits * Shape::kUnitBytes + k_tile * kKTileColumns);
        int(&of_unit)[4 * kTokensOfLane] = accumulators[index % kBuffers];
        WgmmaFence();
        WgmmaS8<false>(a[k_tile][0], operand, of_unit);
        WgmmaS8<true>(a[k_tile][1], AdvanceDescriptor(operand, kInstructionColumns), of_unit);
        WgmmaCommit();
      };
      multiply(0);
      load_k_tile(1);
#pragma unroll
      for (int index = 1; index < kBuffers; ++index) multiply(index);
#pragma unroll
      for (int index = 0; index < kStageUnits; ++index) {
        // As many as have begun after this one.
        constexpr int kLast = kStageUnits - 1;
        if (index + kBuffers - 1 <= kLast) {
          WgmmaWait<kBuffers - 1>();
        } else if (index < kLast) {
          WgmmaWait<1>();
        } else {
          WgmmaWait<0>();
          if (lane == 0) MbarrierArrive(empty[slot]);
        }
        int(&of_unit)[4 * kTokensOfLane] = accumulators[index % kBuffers];
        FenceAccumulators(of_unit);
        const float2 factors = index < kUnits
                                   ? first_factors
                                   : GroupScales<Weights>(scales[1], matrix.has_half_scales);
#pragma unroll
        for (int i = 0; i < kTokensOfLane; ++i) {
          float2& total = k_split_totals[index % kUnits][i];
          total.x = AddGroupSum(total.x, of_unit[4 * i], of_unit[4 * i + 1], factors.x);
          total.y = AddGroupSum(total.y, of_unit[4 * i + 2], of_unit[4 * i + 3], factors.y);
          Materialize(total);  // before the next wait
        }
        if (index + kBuffers <= kLast) multiply(index + kBuffers);
        if (index % kUnits == kUnits - 1) finish_k_tile(first_k_tile + index / kUnits + 1);
        if (index == kUnits - 1) {
          // The first K tile's weights are done with.
          ring.Advance();
          if (first_k_tile + kStageKTiles < num_k_tiles) {
            MbarrierWait(full[ring.slot()], ring.parity());
            load_k_tile(0);
          }
        }
      }
    }

    const auto rows = static_cast<int>(matrix.rows);
    const int first_row = (tile / grid.token_blocks * Shape::kMTiles + warp) * kMTileRows;
    const auto write = [&](auto is_whole) {
      const int row = first_row + lane / 4;
      const auto is_row = [&](int half) { return is_whole.value || row + half * 8 < rows; };
      const float biases[2] = {is_row(0) ? BiasOf(matrix, row) : 0.0f,
                               is_row(1) ? BiasOf(matrix, row + 8) : 0.0f};
      float* out = arguments.y + int64_t{first_token + lane % 4} * rows + row;
#pragma unroll
      for (int i = 0; i < kUnits * kTokensOfLane; ++i) {
        const float scale = __shfl_sync(0xffffffffu, scale_of_lane[i / kTokensOfLane],
                                        i % kTokensOfLane * 4 + lane % 4);
        const bool is_token = is_whole.value || first_token + i * 4 + lane % 4 < num_tokens;
        const auto put = [&](int half, float sum) {
          if (!is_token || !is_row(half)) return;
          PutOutput(out + half * 8, !is_whole.value && arguments.accumulate,
                    FinishSum(sum, scale, 1.0f, biases[half]));
        };
        const float2 total = totals[i / kTokensOfLane][i % kTokensOfLane];
        put(0, total.x);
        put(1, total.y);
        out += int64_t{4} * rows;
      }
    };
    if (!arguments.accumulate && first_row + kMTileRows <= rows &&
        first_token + Shape::kTokens <= num_tokens) {
      write(std::true_type());
    } else {
      write(std::false_type());
    }
  }
}

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    GroupedProductHopper(const __grid_constant__ ProductArguments arguments,
                         const __grid_constant__ GroupedMaps maps,
                         const __grid_constant__ GroupedGrid grid) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t dynamic_shared[];
  __shared__ GroupedShared<Shape> shared;
  uint8_t* const stages =
      dynamic_shared + (kAlignment - SharedAddress(dynamic_shared) % kAlignment) % kAlignment;
  LaunchDependents();
  if (threadIdx.x == 0) {
    InitRing(MbarrierArray(shared.full), MbarrierArray(shared.empty), Shape::kStages,
             /*full_arrivals=*/1, /*empty_arrivals=*/Shape::kConsumerWarps);
    FenceProxyAsync();
  }
  __syncthreads();
  if (threadIdx.x >= Shape::kConsumerThreads) {
    WarpgroupRegDealloc<32>();
    if (threadIdx.x == Shape::kConsumerThreads) {
      PrefetchTensorMap(maps.weights);
      PrefetchTensorMap(maps.inputs);
      ProduceStages<Shape>(arguments.matrix, maps, grid, SharedAddress(stages), shared);
    }
  } else {
    WarpgroupRegAlloc<216>();
    ConsumeStages<Shape>(arguments, grid, stages, shared);
  }
#endif
}

template <typename Shape>
cudaError_t Launch(const ProductArguments& arguments, cudaStream_t stream) {
  const EncodeTensorMap encode = FindEncodeTensorMap();
  if (encode == nullptr) return cudaErrorNotSupported;
  cudaError_t error =
      cudaFuncSetAttribute(GroupedProductHopper<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           Shape::kSharedBytes);
  if (error != cudaSuccess) return error;
  GroupedMaps maps;
  error = EncodeHiLoMap(encode, arguments, Shape::kTokens, /*num_spans=*/1, &maps.inputs);
  if (error != cudaSuccess) return error;
  error =
      EncodeWeightMap(encode, arguments.matrix, arguments.matrix.num_k_tiles * Shape::kKTileBytes,
                      Shape::kKTileBytes, Shape::kMTiles, kWeightUnit, &maps.weights);
  if (error != cudaSuccess) return error;
  const int64_t row_blocks =
      (NumMTiles(arguments.matrix.rows) + Shape::kMTiles - 1) / Shape::kMTiles;
  const int64_t token_blocks = (arguments.num_tokens + Shape::kTokens - 1) / Shape::kTokens;
  const GroupedGrid grid = {static_cast<int>(token_blocks),
                            static_cast<int>(row_blocks * token_blocks)};
  const int num_blocks = std::min(grid.num_tiles, arguments.num_sms);
  return LaunchKernel(GroupedProductHopper<Shape>, dim3(static_cast<unsigned>(num_blocks)),
                      Shape::kThreads, Shape::kSharedBytes, stream, arguments, maps, grid);
}

template <typename Weights>
cudaError_t LaunchOf(const ProductArguments& arguments, cudaStream_t stream) {
  return arguments.num_tokens <= kUnitTokens ? Launch<GroupedShape<Weights, 1>>(arguments, stream)
                                             : Launch<GroupedShape<Weights, 2>>(arguments, stream);
}

}  // namespace

bool HasGroupedProductHopper() { return IsHopper(); }

cudaError_t LaunchGroupedProductHopper(bool is_int4, const ProductArguments& arguments,
                                       cudaStream_t stream) {
  return is_int4 ? LaunchOf<Int4Weights>(arguments, stream)
                 : LaunchOf<Int8Weights>(arguments, stream);
}

#else

bool HasGroupedProductHopper() { return false; }
cudaError_t LaunchGroupedProductHopper(bool, const ProductArguments&, cudaStream_t) {
  return cudaErrorNotSupported;
}

#endif

}  // namespace ultrasketch::cuda
