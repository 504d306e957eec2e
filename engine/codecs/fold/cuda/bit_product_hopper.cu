// Products of sign bits with many tokens by wgmma.
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
// Blocks stay and take tile after tile, rows first, so that those at work share their tokens; the
// ring is filled for the next tile while the outputs of one are written.
#include <cuda.h>

#include <algorithm>
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
// Swizzled operands begin at multiples of 1024.
constexpr int kAlignment = 1024;

template <int kTilesOf, int kWarpgroupsOf, int kTokensOf>
struct HopperShape {
  static constexpr int kTiles = kTilesOf;  // of 64 rows, for each warpgroup
  static constexpr int kWarpgroups = kWarpgroupsOf;
  static constexpr int kTokens = kTokensOf;
  static constexpr int kColumns = 2 * kTokens;
  static constexpr int kRows = kWarpgroupRows * kTiles * kWarpgroups;
  static constexpr int kRowTiles = kRows / kTileRows;
  // The warp that fills has a warpgroup of its own where registers are to move from it.
  static constexpr bool kMovesRegisters = kWarpgroups > 1;
  static constexpr int kThreads = 128 * kWarpgroups + (kMovesRegisters ? 128 : 32);
  static constexpr int kHalfBytes = kColumns * kPlaneBytes;
  static constexpr int kInputBytes = kHalves * kHalfBytes;
  static constexpr int kStageBytes = kInputBytes + kRowTiles * kBitStepBytes;
  static_assert(kStageBytes % kAlignment == 0);
  static constexpr int kBlocks = kWarpgroups > 1 ? 1 : 2;
  static constexpr int kStages = std::min(8, 220 * 1024 / kBlocks / kStageBytes);
  static constexpr int kSharedBytes = kAlignment + kStages * kStageBytes;
};

template <typename Shape>
struct Shared {
  SharedBarrier full[Shape::kStages];
  SharedBarrier empty[Shape::kStages];
  // Of the tile's tokens; two tiles' in turn, so that a warp may be one ahead.
  InputTotal totals[Shape::kWarpgroups][2][Shape::kTokens];
};

struct Grid {
  int64_t row_blocks;
  int64_t num_tiles;
};

__device__ inline void ExpectBytes(uint32_t barrier, int num_bytes) {
  asm volatile(
      "{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(barrier),
      "r"(num_bytes)
      : "memory");
}

__device__ inline void CopyInputs(const CUtensorMap& map, int x, int token, uint32_t shared,
                                  uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3, %4}], [%5];" ::"r"(shared),
      "l"(&map), "r"(x), "r"(0), "r"(token), "r"(barrier)
      : "memory");
}

__device__ inline void CopyBits(const uint8_t* bits, uint32_t shared, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(shared),
      "l"(bits), "r"(kBitStepBytes), "r"(barrier)
      : "memory");
}

__device__ inline void SyncWarpgroup(int warpgroup) {
  asm volatile("bar.sync %0, 128;" ::"r"(warpgroup + 1) : "memory");
}

// One warp.
template <typename Shape>
__device__ inline void FillStages(const ProductArguments& arguments, const CUtensorMap& inputs,
                                  const Grid& grid, uint32_t stages, Shared<Shape>& shared) {
  const PackedMatrix& matrix = arguments.matrix;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int num_steps = static_cast<int>(matrix.num_steps) / kStepsPerBitStep;
  const int64_t last_row_tile = NumRowTiles(matrix.rows) - 1;
  const BarrierArray full(shared.full);
  const BarrierArray empty(shared.empty);
  Ring ring(Shape::kStages);
  for (int64_t tile = blockIdx.x; tile < grid.num_tiles; tile += gridDim.x) {
    const auto first_token = static_cast<int>(tile / grid.row_blocks) * Shape::kTokens;
    // Row tiles past the end repeat the last one; their sums are dropped.
    const int64_t row_tile = min(tile % grid.row_blocks * Shape::kRowTiles + lane, last_row_tile);
    const uint8_t* bits =
        static_cast<const uint8_t*>(matrix.tiles) + row_tile * num_steps * kBitStepBytes;
    for (int step = 0; step < num_steps; ++step) {
      const uint32_t barrier = full[ring.slot()];
      const uint32_t stage = stages + ring.slot() * Shape::kStageBytes;
      WaitForPhase(empty[ring.slot()], ring.parity() ^ 1);
      if (lane == 0) {
        ExpectBytes(barrier, Shape::kStageBytes);
        for (int half = 0; half < kHalves; ++half) {
          CopyInputs(inputs, (step * kHalves + half) * 2 * kPlaneBytes, first_token,
                     stage + half * Shape::kHalfBytes, barrier);
        }
      }
      if (lane < Shape::kRowTiles) {
        CopyBits(bits + step * kBitStepBytes, stage + Shape::kInputBytes + lane * kBitStepBytes,
                 barrier);
      }
      ring.Advance();
    }
  }
}

// The registers of a half step's instructions from the words of a lane's four chunks of two rows.
__device__ inline void ExpandBits(const uint2 (&words)[4], int quad,
                                  uint32_t (&a)[kInstructionsPerHalf][4]) {
#pragma unroll
  for (int chunk = 0; chunk < 4; ++chunk) {
    const uint32_t low = words[chunk].x >> quad;
    const uint32_t high = words[chunk].y >> quad;
    const int instruction = chunk / 2;
    const int reg = chunk % 2 * 2;
    a[instruction][reg] = low & kUnitMask;
    a[instruction][reg + 1] = high & kUnitMask;
    a[instruction + 2][reg] = low >> kUnitsPerChunk & kUnitMask;
    a[instruction + 2][reg + 1] = high >> kUnitsPerChunk & kUnitMask;
  }
}

template <typename Shape>
__device__ inline void MultiplyStages(const ProductArguments& arguments, const Grid& grid,
                                      const uint8_t* stages, Shared<Shape>& shared) {
  constexpr int kTiles = Shape::kTiles;
  const PackedMatrix& matrix = arguments.matrix;
  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int quad = lane % 4;
  const int num_steps = static_cast<int>(matrix.num_steps) / kStepsPerBitStep;
  // Of this lane's rows l / 4 in the first tile of its warpgroup.
  const uint8_t* first_words =
      stages + Shape::kInputBytes + (warpgroup * kTiles * 4 + warp) * kBitStepBytes + lane / 4 * 64;
  const uint32_t first_inputs = SharedAddress(stages);

  const BarrierArray full(shared.full);
  const BarrierArray empty(shared.empty);
  Ring ring(Shape::kStages);
  int turn = 0;
  for (int64_t tile = blockIdx.x; tile < grid.num_tiles; tile += gridDim.x) {
    const int64_t first_token = tile / grid.row_blocks * Shape::kTokens;
    const int64_t first_row = tile % grid.row_blocks * Shape::kRows +
                              (warpgroup * kTiles * 4 + warp) * kTileRows + lane / 4;
    InputTotal* totals = shared.totals[warpgroup][turn];
    turn ^= 1;
    for (int i = static_cast<int>(threadIdx.x) % 128; i < Shape::kTokens; i += 128) {
      if (first_token + i < arguments.num_tokens) {
        totals[i] = SumTotals(TrailerOf(arguments, first_token + i));
      }
    }
    float row_scales[kTiles][2];
    float biases[kTiles][2];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = first_row + t * kWarpgroupRows + half * 8;
        row_scales[t][half] = row < matrix.rows ? matrix.row_scales[row] : 0.0f;
        biases[t][half] = row < matrix.rows ? BiasOf(matrix, row) : 0.0f;
      }
    }

    int sums[kTiles][Shape::kColumns / 2];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < Shape::kColumns / 2; ++i) sums[t][i] = 0;
    }
    int previous_stage = 0;
    for (int step = 0; step < num_steps; ++step) {
      WaitForPhase(full[ring.slot()], ring.parity());
      const uint8_t* words_of_stage = first_words + ring.slot() * Shape::kStageBytes;
      const uint32_t inputs = first_inputs + ring.slot() * Shape::kStageBytes;
      // Two sets, so that one is expanded while the tensor cores read the other.
      uint32_t a[2][kInstructionsPerHalf][4];
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const int part = half * kTiles + t;
          uint2 words[4];
#pragma unroll
          for (int chunk = 0; chunk < 4; ++chunk) {
            words[chunk] = *reinterpret_cast<const uint2*>(words_of_stage + t * 4 * kBitStepBytes +
                                                           chunk * 16 + half * 8);
          }
          WaitForWarpgroup<1>();
          if (part == 1 && step > 0 && lane == 0) Arrive(empty[previous_stage]);
          ExpandBits(words, quad, a[part % 2]);
          FenceWarpgroup();
#pragma unroll
          for (int i = 0; i < kInstructionsPerHalf; ++i) {
            WarpgroupMultiplyBytes(
                a[part % 2][i],
                OperandDescriptor(inputs + half * Shape::kHalfBytes + i * kInstructionColumns, 0,
                                  8 * kPlaneBytes, OperandSwizzle::k128Bytes),
                sums[t]);
          }
          CommitWarpgroup();
        }
      }
      previous_stage = ring.slot();
      ring.Advance();
    }
    WaitForWarpgroup<0>();
    if (lane == 0) Arrive(empty[previous_stage]);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) FenceByteSums(sums[t]);
    SyncWarpgroup(warpgroup);

#pragma unroll
    for (int i = 0; i < Shape::kTokens / 4; ++i) {
      const int64_t token = first_token + i * 4 + quad;
      if (token >= arguments.num_tokens) continue;
      const InputTotal total = totals[i * 4 + quad];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int64_t row = first_row + t * kWarpgroupRows + half * 8;
          if (row >= matrix.rows) continue;
          WriteBits(arguments, token, row,
                    FinishBits(sums[t][i * 4 + half * 2], sums[t][i * 4 + half * 2 + 1], total,
                               row_scales[t][half], biases[t][half]));
        }
      }
    }
  }
}

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    BitProductHopper(const __grid_constant__ ProductArguments arguments,
                     const __grid_constant__ CUtensorMap inputs,
                     const __grid_constant__ Grid grid) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t dynamic_shared[];
  __shared__ Shared<Shape> shared;
  const uint8_t* stages =
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
  }
  __syncthreads();
  WaitForKernelBefore();
  if (threadIdx.x >= 128 * Shape::kWarpgroups) {
    if constexpr (Shape::kMovesRegisters) LowerRegisters<40>();
    if (threadIdx.x < 128 * Shape::kWarpgroups + 32) {
      FillStages<Shape>(arguments, inputs, grid, SharedAddress(stages), shared);
    }
  } else {
    if constexpr (Shape::kMovesRegisters) RaiseRegisters<232>();
    MultiplyStages<Shape>(arguments, grid, stages, shared);
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

// Boxes of 128 columns, both planes, of `num_tokens` tokens; those past the last token are zero.
cudaError_t DescribeInputs(const ProductArguments& arguments, int num_tokens, CUtensorMap* map) {
  static const EncodeFunction encode = FindEncode();
  if (encode == nullptr) return cudaErrorNotSupported;
  const int64_t num_steps = arguments.matrix.num_steps;
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(num_steps * kStepColumns * 2 - kPlaneBytes),
                                2, static_cast<cuuint64_t>(arguments.num_tokens)};
  const cuuint64_t strides[] = {kPlaneBytes, static_cast<cuuint64_t>(PreparedRowBytes(num_steps))};
  const cuuint32_t box[] = {kPlaneBytes, 2, static_cast<cuuint32_t>(num_tokens)};
  const cuuint32_t element_strides[] = {1, 1, 1};
  const CUresult result = encode(
      map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 3, const_cast<void*>(arguments.prepared), extents,
      strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <typename Shape>
Grid GridOf(const ProductArguments& arguments) {
  const int64_t row_blocks = (arguments.matrix.rows + Shape::kRows - 1) / Shape::kRows;
  const int64_t token_blocks = (arguments.num_tokens + Shape::kTokens - 1) / Shape::kTokens;
  return {row_blocks, row_blocks * token_blocks};
}

template <typename Shape>
cudaError_t Launch(const ProductArguments& arguments, cudaStream_t stream) {
  cudaError_t error = cudaFuncSetAttribute(
      BitProductHopper<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
  if (error != cudaSuccess) return error;
  CUtensorMap inputs;
  error = DescribeInputs(arguments, Shape::kTokens, &inputs);
  if (error != cudaSuccess) return error;
  const Grid grid = GridOf<Shape>(arguments);
  const int64_t num_blocks =
      std::min<int64_t>(grid.num_tiles, int64_t{arguments.num_multiprocessors} * Shape::kBlocks);
  return LaunchKernel(BitProductHopper<Shape>, dim3(static_cast<unsigned>(num_blocks)),
                      Shape::kThreads, Shape::kSharedBytes, stream, arguments, inputs, grid);
}

struct Choice {
  int64_t cost = INT64_MAX;
  cudaError_t (*launch)(const ProductArguments&, cudaStream_t) = nullptr;
};

// By the clocks that the tensor cores of the busiest multiprocessor take, about.
template <typename Shape>
void Consider(const ProductArguments& arguments, Choice& choice) {
  const int64_t num_steps = arguments.matrix.num_steps / kStepsPerBitStep;
  const int64_t num_tiles = GridOf<Shape>(arguments).num_tiles;
  const int64_t rounds =
      (num_tiles + arguments.num_multiprocessors - 1) / arguments.num_multiprocessors;
  // A warpgroup alone does not keep the tensor cores busy.
  constexpr int64_t kStepClocks = std::max(Shape::kTiles * Shape::kWarpgroups, 2) *
                                  kInstructionsPerBitStep * Shape::kColumns / 2 * 5 / 4;
  constexpr int64_t kTileClocks = 600 + Shape::kRows * Shape::kTokens / 16;
  const int64_t cost = rounds * (num_steps * kStepClocks + kTileClocks);
  if (cost < choice.cost) choice = {cost, Launch<Shape>};
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
  if (arguments.num_tokens <= 32) {
    Consider<HopperShape<1, 1, 32>>(arguments, choice);
    Consider<HopperShape<1, 2, 32>>(arguments, choice);
  } else {
    Consider<HopperShape<1, 1, 64>>(arguments, choice);
    Consider<HopperShape<1, 2, 64>>(arguments, choice);
    Consider<HopperShape<2, 2, 64>>(arguments, choice);
  }
  return choice.launch(arguments, stream);
}

#else

bool HasBitProductHopper() { return false; }
cudaError_t LaunchBitProductHopper(const ProductArguments&, cudaStream_t) {
  return cudaErrorNotSupported;
}

#endif

}  // namespace ultrasketch::cuda
