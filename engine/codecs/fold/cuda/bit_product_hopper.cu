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
#include <cuda.h>

#include <algorithm>
#include <bit>
#include <cstdint>

#include "engine/codecs/cuda/barriers.cuh"
#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/cuda/warpgroup.cuh"
#include "engine/codecs/fold/cuda/bit_layout.h"
#include "engine/codecs/fold/cuda/bit_product.cuh"
#include "engine/codecs/fold/cuda/bit_product_hopper.h"
#include "engine/codecs/fold/cuda/warpgroup_bytes.cuh"

namespace ultrasketch::cuda {

#if defined(US_BUILD_SM_90A)
namespace {

constexpr int kWarpgroupRows = 64;
constexpr int kHalves = kBitStepColumns / kPlaneBytes;
constexpr int kInstructionsPerHalf = kInstructionsPerBitStep / kHalves;
constexpr int kInstructionColumns = 32;
constexpr int kBitStepWords = kBitStepBytes / 4;
// Swizzled operands begin at multiples of 1024.
constexpr int kAlignment = 1024;
// Shared memory of a multiprocessor, and what a block takes of it besides the stages.
constexpr int kMultiprocessorBytes = 224 * 1024;
constexpr int kStaticBytes = 4096;
constexpr int kMostSplits = 8;

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

using EncodeFunction = decltype(&cuTensorMapEncodeTiled);

// The driver's, which is not linked.
EncodeFunction FindEncode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &result);
  if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<EncodeFunction>(function);
}

// Boxes of a bit step: both halves of `num_tokens` tokens, both planes; tokens past the last are
// zero.
cudaError_t DescribeInputs(EncodeFunction encode, const ProductArguments& arguments, int num_tokens,
                           CUtensorMap* map) {
  const int64_t num_steps = arguments.matrix.num_steps;
  const cuuint64_t extents[] = {kPlaneBytes, 2, static_cast<cuuint64_t>(arguments.num_tokens),
                                static_cast<cuuint64_t>(num_steps / kStepsPerBitStep * kHalves)};
  const cuuint64_t strides[] = {kPlaneBytes, static_cast<cuuint64_t>(PreparedRowBytes(num_steps)),
                                2 * kPlaneBytes};
  const cuuint32_t box[] = {kPlaneBytes, 2, static_cast<cuuint32_t>(num_tokens), kHalves};
  const cuuint32_t element_strides[] = {1, 1, 1, 1};
  const CUresult result = encode(
      map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 4, const_cast<void*>(arguments.prepared), extents,
      strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// Boxes of a bit step of `num_row_tiles` row tiles; those past the last are zero.
cudaError_t DescribeBits(EncodeFunction encode, const PackedMatrix& matrix, int num_row_tiles,
                         CUtensorMap* map) {
  const int64_t num_steps = matrix.num_steps / kStepsPerBitStep;
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(num_steps * kBitStepWords),
                                static_cast<cuuint64_t>(NumRowTiles(matrix.rows))};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(num_steps * kBitStepBytes)};
  const cuuint32_t box[] = {kBitStepWords, static_cast<cuuint32_t>(num_row_tiles)};
  const cuuint32_t element_strides[] = {1, 1};
  const CUresult result = encode(
      map, CU_TENSOR_MAP_DATA_TYPE_INT32, 2, const_cast<void*>(matrix.tiles), extents, strides, box,
      element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <typename Shape>
Grid GridOf(const ProductArguments& arguments, int num_splits) {
  const int64_t row_blocks = (arguments.matrix.rows + Shape::kRows - 1) / Shape::kRows;
  const int64_t token_blocks = (arguments.num_tokens + Shape::kTokens - 1) / Shape::kTokens;
  return {static_cast<int>(row_blocks), static_cast<int>(row_blocks * token_blocks),
          std::countr_zero(static_cast<unsigned>(num_splits))};
}

template <typename Shape>
cudaError_t AllowSharedMemory() {
  return cudaFuncSetAttribute(BitProductHopper<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              Shape::kSharedBytes);
}

template <typename Shape>
cudaError_t Launch(const ProductArguments& arguments, int num_splits, cudaStream_t stream) {
  static const EncodeFunction encode = FindEncode();
  if (encode == nullptr) return cudaErrorNotSupported;
  cudaError_t error = AllowSharedMemory<Shape>();
  if (error != cudaSuccess) return error;
  Maps maps;
  error = DescribeInputs(encode, arguments, Shape::kTokens, &maps.inputs);
  if (error != cudaSuccess) return error;
  error = DescribeBits(encode, arguments.matrix, Shape::kRowTiles, &maps.bits);
  if (error != cudaSuccess) return error;
  const Grid grid = GridOf<Shape>(arguments, num_splits);
  const int64_t num_blocks =
      num_splits > 1 ? grid.num_tiles * num_splits
                     : std::min(grid.num_tiles, arguments.num_multiprocessors * Shape::kBlocks);
  return LaunchClusters(BitProductHopper<Shape>, dim3(static_cast<unsigned>(num_blocks)),
                        num_splits, Shape::kThreads, Shape::kSharedBytes, stream, arguments, maps,
                        grid);
}

// How many clusters of kSplits blocks the device holds at once; 0 if none. Asked once: the devices
// of a machine are alike.
template <typename Shape, int kSplits>
int NumClustersAtOnce() {
  static const int count = [] {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = kSplits;
    attribute.val.clusterDim.y = 1;
    attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(kSplits);
    config.blockDim = dim3(Shape::kThreads);
    config.dynamicSmemBytes = Shape::kSharedBytes;
    config.attrs = &attribute;
    config.numAttrs = 1;
    int num_clusters = 0;
    if (AllowSharedMemory<Shape>() != cudaSuccess ||
        cudaOccupancyMaxActiveClusters(&num_clusters, BitProductHopper<Shape>, &config) !=
            cudaSuccess) {
      cudaGetLastError();
      return 0;
    }
    return num_clusters;
  }();
  return count;
}

struct Choice {
  int64_t cost = INT64_MAX;
  cudaError_t (*launch)(const ProductArguments&, int num_splits, cudaStream_t) = nullptr;
  int num_splits = 1;
};

// By the clocks from a kernel's first step to its end, about, as measured on an H200.
template <typename Shape, int kSplits>
void ConsiderSplits(const ProductArguments& arguments, Choice& choice) {
  const int64_t num_steps = arguments.matrix.num_steps / kStepsPerBitStep;
  if (kSplits > num_steps) return;
  const int64_t num_multiprocessors = arguments.num_multiprocessors;
  const int64_t num_blocks = GridOf<Shape>(arguments, kSplits).num_tiles * kSplits;
  const int64_t places = kSplits == 1 ? num_multiprocessors * Shape::kBlocks
                                      : int64_t{NumClustersAtOnce<Shape, kSplits>()} * kSplits;
  if (places == 0) return;
  const int64_t rounds = (num_blocks + places - 1) / places;
  const int64_t blocks_each =
      (std::min(num_blocks, places) + num_multiprocessors - 1) / num_multiprocessors;

  // A step of a block that has the multiprocessor for itself waits for barriers, loads and the
  // tensor cores in turn.
  constexpr int64_t kAloneClocks = 400 + Shape::kTiles * (250 + 7 * Shape::kTokens);
  // Several are bound by what they share: the tensor cores, issue, reading inputs.
  constexpr int64_t kUnits = Shape::kTiles * Shape::kWarpgroups;
  constexpr int64_t kTensorClocks = kUnits * kInstructionsPerBitStep * Shape::kTokens * 5 / 4;
  constexpr int64_t kIssueClocks = kUnits * 220;
  constexpr int64_t kReadClocks = Shape::kStageBytes / 30;
  constexpr int64_t kSharedClocks = std::max({kTensorClocks, kIssueClocks, kReadClocks});
  // The outputs of a tile; then the sums of a cluster, and the start of the clusters of a round.
  constexpr int64_t kTileClocks = 600 + Shape::kRows * Shape::kTokens / (16 * kSplits);
  constexpr int64_t kClusterClocks = kSplits == 1 ? 0 : 1500;

  const int64_t steps_each = (num_steps + kSplits - 1) / kSplits;
  const int64_t cost = rounds * (steps_each * std::max(kAloneClocks, blocks_each * kSharedClocks) +
                                 kTileClocks + kClusterClocks);
  if (cost < choice.cost) choice = {cost, Launch<Shape>, kSplits};
}

template <typename Shape>
void Consider(const ProductArguments& arguments, Choice& choice) {
  ConsiderSplits<Shape, 1>(arguments, choice);
  ConsiderSplits<Shape, 2>(arguments, choice);
  ConsiderSplits<Shape, 4>(arguments, choice);
  ConsiderSplits<Shape, kMostSplits>(arguments, choice);
}

}  // namespace

bool HasBitProductHopper() {
  int device = 0;
  int major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major == 9;
}

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
