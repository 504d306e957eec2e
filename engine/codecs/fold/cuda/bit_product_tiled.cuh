// Products of sign bits with many tokens on devices without warpgroup instructions.
//
//              kTokens tokens
//   128 rows  [ 4 x 2 warps of 32 rows by kTokens / 2 ]   both operands through shared memory,
//                                                         kStages stages of a bit step each
//
// Bound by the tensor cores. A warp expands the bits of its rows once for all of its tokens.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_TILED_CUH_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_TILED_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/fold/cuda/bit_product.cuh"

namespace ultrasketch::cuda {

// Stages fit into the 99 KiB of shared memory that every device has for a block.
template <int kTokensOf, int kStagesOf>
struct BitTileShape {
  static constexpr int kTokens = kTokensOf;
  static constexpr int kStages = kStagesOf;
  static constexpr int kThreads = 256;
  static constexpr int kRowTiles = 8;
  static constexpr int kWarpRowTiles = 2;
  static constexpr int kColumns = 2 * kTokens;
  static constexpr int kWarpColumnTiles = kColumns / 8 / 2;
  static constexpr int kColumnBytes = kBitStepColumns;
  static constexpr int kBitBytes = kRowTiles * kBitStepBytes;
  static constexpr int kStageBytes = kBitBytes + kColumns * kColumnBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;
};

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    BitProductTiled(const __grid_constant__ ProductArguments arguments) {
  constexpr int kWarpRowTiles = Shape::kWarpRowTiles;
  constexpr int kColumnTiles = Shape::kWarpColumnTiles;
  constexpr int kPieceBytes = 16;
  constexpr int kPiecesPerColumn = Shape::kColumnBytes / kPieceBytes;
  extern __shared__ __align__(128) uint8_t bit_stages[];
  AllowNextKernel();
  WaitForKernelBefore();

  const PackedMatrix& matrix = arguments.matrix;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp_row = thread / 32 / 2;
  const int warp_column = thread / 32 % 2;
  const int num_steps = static_cast<int>(matrix.num_steps) / kStepsPerBitStep;
  const int64_t last_tile = NumRowTiles(matrix.rows) - 1;
  const int64_t first_tile = int64_t{blockIdx.x} * Shape::kRowTiles;
  const int64_t first_token = int64_t{blockIdx.y} * Shape::kTokens;

  // Tiles and tokens past the end repeat the last one; their sums are dropped. Pieces of odd
  // columns change places in fours, so that the pieces that lanes read at a time are in different
  // banks.
  const auto place_of = [](int column, int piece) {
    return column * Shape::kColumnBytes + (piece ^ column % 2 * 4) * kPieceBytes;
  };
  const auto fetch = [&](int step) {
    uint8_t* stage = bit_stages + step % Shape::kStages * Shape::kStageBytes;
    for (int piece = thread; piece < Shape::kBitBytes / kPieceBytes; piece += Shape::kThreads) {
      constexpr int kPiecesPerTile = kBitStepBytes / kPieceBytes;
      const int64_t tile = min(first_tile + piece / kPiecesPerTile, last_tile);
      CopyAsync16(stage + piece * kPieceBytes, static_cast<const uint8_t*>(matrix.tiles) +
                                                   (tile * num_steps + step) * kBitStepBytes +
                                                   piece % kPiecesPerTile * kPieceBytes);
    }
    for (int index = thread; index < Shape::kColumns * kPiecesPerColumn; index += Shape::kThreads) {
      const int column = index / kPiecesPerColumn;
      const int piece = index % kPiecesPerColumn;
      constexpr int kPiecesPerPlane = kPlaneBytes / kPieceBytes;
      const int64_t token = min(first_token + column / 2, arguments.num_tokens - 1);
      CopyAsync16(stage + Shape::kBitBytes + place_of(column, piece),
                  PreparedRow(arguments, token) + int64_t{step} * (2 * kBitStepColumns) +
                      piece / kPiecesPerPlane * (2 * kPlaneBytes) + column % 2 * kPlaneBytes +
                      piece % kPiecesPerPlane * kPieceBytes);
    }
  };

  int sums[kWarpRowTiles][kColumnTiles][4] = {};
  const auto multiply = [&](int step) {
    const uint8_t* stage = bit_stages + step % Shape::kStages * Shape::kStageBytes;
    uint4 bits[kWarpRowTiles];
#pragma unroll
    for (int row = 0; row < kWarpRowTiles; ++row) {
      bits[row] = *reinterpret_cast<const uint4*>(
          stage + (warp_row * kWarpRowTiles + row) * kBitStepBytes + lane * 16);
    }
#pragma unroll
    for (int chunk = 0; chunk < 2; ++chunk) {
      uint32_t a[kWarpRowTiles][kUnitsPerChunk][4];
#pragma unroll
      for (int row = 0; row < kWarpRowTiles; ++row) {
#pragma unroll
        for (int unit = 0; unit < kUnitsPerChunk; ++unit) {
          const int shift = chunk * kUnitsPerChunk + unit;
          a[row][unit][0] = bits[row].x >> shift & kUnitMask;
          a[row][unit][1] = bits[row].y >> shift & kUnitMask;
          a[row][unit][2] = bits[row].z >> shift & kUnitMask;
          a[row][unit][3] = bits[row].w >> shift & kUnitMask;
        }
      }
#pragma unroll
      for (int tile = 0; tile < kColumnTiles; ++tile) {
        const int column = (warp_column * kColumnTiles + tile) * 8 + lane / 4;
        const int piece = chunk * 4 + lane % 4;
        const auto input = [&](int half) {
          return *reinterpret_cast<const uint4*>(stage + Shape::kBitBytes +
                                                 place_of(column, half * 8 + piece));
        };
        const uint4 first = input(0);
        const uint4 second = input(1);
        const uint2 b[kUnitsPerChunk] = {
            {first.x, second.x}, {first.y, second.y}, {first.z, second.z}, {first.w, second.w}};
#pragma unroll
        for (int unit = 0; unit < kUnitsPerChunk; ++unit) {
#pragma unroll
          for (int row = 0; row < kWarpRowTiles; ++row) {
            MultiplyBytes(a[row][unit], b[unit], sums[row][tile]);
          }
        }
      }
    }
  };

#pragma unroll
  for (int step = 0; step < Shape::kStages - 1; ++step) {
    if (step < num_steps) fetch(step);
    CommitCopies();
  }
  for (int step = 0; step < num_steps; ++step) {
    WaitForCopies<Shape::kStages - 2>();
    __syncthreads();
    // Into the stage that all warps left before the barrier.
    if (step + Shape::kStages - 1 < num_steps) fetch(step + Shape::kStages - 1);
    CommitCopies();
    multiply(step);
  }

  const int64_t first_row = (first_tile + warp_row * kWarpRowTiles) * kTileRows + lane / 4;
#pragma unroll
  for (int tile = 0; tile < kColumnTiles; ++tile) {
    const int64_t token = first_token + (warp_column * kColumnTiles + tile) * 4 + lane % 4;
    if (token >= arguments.num_tokens) continue;
    const InputTotal total = SumTotals(TrailerOf(arguments, token));
#pragma unroll
    for (int row_tile = 0; row_tile < kWarpRowTiles; ++row_tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = first_row + row_tile * kTileRows + half * 8;
        if (row >= matrix.rows) continue;
        PutOutput(arguments, token, row,
                  FinishBits(sums[row_tile][tile][2 * half], sums[row_tile][tile][2 * half + 1],
                             total, matrix.row_scales[row], BiasOf(matrix, row)));
      }
    }
  }
}

template <typename Shape>
cudaError_t LaunchBitTile(const ProductArguments& arguments, cudaStream_t stream) {
  const cudaError_t error = cudaFuncSetAttribute(
      BitProductTiled<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
  if (error != cudaSuccess) return error;
  constexpr int kRows = Shape::kRowTiles * kTileRows;
  const dim3 grid(
      static_cast<unsigned>((arguments.matrix.rows + kRows - 1) / kRows),
      static_cast<unsigned>((arguments.num_tokens + Shape::kTokens - 1) / Shape::kTokens));
  return LaunchKernel(BitProductTiled<Shape>, grid, Shape::kThreads, Shape::kSharedBytes, stream,
                      arguments);
}

inline cudaError_t LaunchBitProductTiled(const ProductArguments& arguments, cudaStream_t stream) {
  return arguments.num_tokens <= 32 ? LaunchBitTile<BitTileShape<32, 4>>(arguments, stream)
                                    : LaunchBitTile<BitTileShape<64, 2>>(arguments, stream);
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_TILED_CUH_
