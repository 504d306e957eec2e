// Products of sign bits with many tokens on devices without warpgroup instructions.
//
//              kTokens tokens
//   128 rows  [ 4 x 2 warps of 32 rows by kTokens / 2 ]   both operands through shared memory,
//                                                         kStages stages of a bit K tile each
//
// Bound by the tensor cores. A warp expands the bits of its rows once for all of its tokens.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_TILED_CUH_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_TILED_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/cuda/ptx/mma.cuh"
#include "engine/codecs/fold/cuda/bit_product.cuh"

namespace ultrasketch::cuda {

// Stages fit into the 99 KiB of shared memory that every device has for a block.
template <int kTokensOf, int kStagesOf>
struct BitTileShape {
  static constexpr int kTokens = kTokensOf;
  static constexpr int kStages = kStagesOf;
  static constexpr int kThreads = 256;
  static constexpr int kMTiles = 8;
  static constexpr int kWarpMTiles = 2;
  static constexpr int kColumns = 2 * kTokens;
  static constexpr int kWarpColumnTiles = kColumns / 8 / 2;
  static constexpr int kColumnBytes = kBitKTileColumns;
  static constexpr int kBitBytes = kMTiles * kBitKTileBytes;
  static constexpr int kStageBytes = kBitBytes + kColumns * kColumnBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;
};

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    BitProductTiled(const __grid_constant__ ProductArguments arguments) {
  constexpr int kWarpMTiles = Shape::kWarpMTiles;
  constexpr int kColumnTiles = Shape::kWarpColumnTiles;
  constexpr int kPieceBytes = 16;
  constexpr int kPiecesPerColumn = Shape::kColumnBytes / kPieceBytes;
  extern __shared__ __align__(128) uint8_t bit_stages[];
  LaunchDependents();
  WaitForGridDependency();

  const PackedMatrix& matrix = arguments.matrix;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp_row = thread / 32 / 2;
  const int warp_column = thread / 32 % 2;
  const int num_k_tiles = static_cast<int>(matrix.num_k_tiles) / kKTilesPerBitKTile;
  const int64_t last_tile = NumMTiles(matrix.rows) - 1;
  const int64_t first_tile = int64_t{blockIdx.x} * Shape::kMTiles;
  const int64_t first_token = int64_t{blockIdx.y} * Shape::kTokens;

  // Tiles and tokens past the end repeat the last one; their sums are dropped. Pieces of odd
  // columns change places in fours, so that the pieces that lanes read at a time are in different
  // banks.
  const auto place_of = [](int column, int piece) {
    return column * Shape::kColumnBytes + (piece ^ column % 2 * 4) * kPieceBytes;
  };
  const auto fetch = [&](int k_tile) {
    uint8_t* stage = bit_stages + k_tile % Shape::kStages * Shape::kStageBytes;
    for (int piece = thread; piece < Shape::kBitBytes / kPieceBytes; piece += Shape::kThreads) {
      constexpr int kPiecesPerTile = kBitKTileBytes / kPieceBytes;
      const int64_t tile = min(first_tile + piece / kPiecesPerTile, last_tile);
      CopyAsync16(stage + piece * kPieceBytes, static_cast<const uint8_t*>(matrix.tiles) +
                                                   (tile * num_k_tiles + k_tile) * kBitKTileBytes +
                                                   piece % kPiecesPerTile * kPieceBytes);
    }
    for (int index = thread; index < Shape::kColumns * kPiecesPerColumn; index += Shape::kThreads) {
      const int column = index / kPiecesPerColumn;
      const int piece = index % kPiecesPerColumn;
      constexpr int kPiecesPerPlane = kHiLoBytes / kPieceBytes;
      const int64_t token = min(first_token + column / 2, arguments.num_tokens - 1);
      CopyAsync16(stage + Shape::kBitBytes + place_of(column, piece),
                  PackedInputRow(arguments, token) + int64_t{k_tile} * (2 * kBitKTileColumns) +
                      piece / kPiecesPerPlane * (2 * kHiLoBytes) + column % 2 * kHiLoBytes +
                      piece % kPiecesPerPlane * kPieceBytes);
    }
  };

  int accumulators[kWarpMTiles][kColumnTiles][4] = {};
  const auto multiply = [&](int k_tile) {
    const uint8_t* stage = bit_stages + k_tile % Shape::kStages * Shape::kStageBytes;
    uint4 bits[kWarpMTiles];
#pragma unroll
    for (int row = 0; row < kWarpMTiles; ++row) {
      bits[row] = *reinterpret_cast<const uint4*>(
          stage + (warp_row * kWarpMTiles + row) * kBitKTileBytes + lane * 16);
    }
#pragma unroll
    for (int run = 0; run < 2; ++run) {
      uint32_t a[kWarpMTiles][kUnitsPerRun][4];
#pragma unroll
      for (int row = 0; row < kWarpMTiles; ++row) {
#pragma unroll
        for (int unit = 0; unit < kUnitsPerRun; ++unit) {
          const int shift = run * kUnitsPerRun + unit;
          a[row][unit][0] = bits[row].x >> shift & kUnitMask;
          a[row][unit][1] = bits[row].y >> shift & kUnitMask;
          a[row][unit][2] = bits[row].z >> shift & kUnitMask;
          a[row][unit][3] = bits[row].w >> shift & kUnitMask;
        }
      }
#pragma unroll
      for (int tile = 0; tile < kColumnTiles; ++tile) {
        const int column = (warp_column * kColumnTiles + tile) * 8 + lane / 4;
        const int piece = run * 4 + lane % 4;
        const auto input = [&](int half) {
          return *reinterpret_cast<const uint4*>(stage + Shape::kBitBytes +
                                                 place_of(column, half * 8 + piece));
        };
        const uint4 first = input(0);
        const uint4 second = input(1);
        const uint2 b[kUnitsPerRun] = {
            {first.x, second.x}, {first.y, second.y}, {first.z, second.z}, {first.w, second.w}};
#pragma unroll
        for (int unit = 0; unit < kUnitsPerRun; ++unit) {
#pragma unroll
          for (int row = 0; row < kWarpMTiles; ++row) {
            MmaS8(a[row][unit], b[unit], accumulators[row][tile]);
          }
        }
      }
    }
  };

#pragma unroll
  for (int k_tile = 0; k_tile < Shape::kStages - 1; ++k_tile) {
    if (k_tile < num_k_tiles) fetch(k_tile);
    CommitCopies();
  }
  for (int k_tile = 0; k_tile < num_k_tiles; ++k_tile) {
    WaitForCopies<Shape::kStages - 2>();
    __syncthreads();
    // Into the stage that all warps left before the barrier.
    if (k_tile + Shape::kStages - 1 < num_k_tiles) fetch(k_tile + Shape::kStages - 1);
    CommitCopies();
    multiply(k_tile);
  }

  const int64_t first_row = (first_tile + warp_row * kWarpMTiles) * kMTileRows + lane / 4;
#pragma unroll
  for (int tile = 0; tile < kColumnTiles; ++tile) {
    const int64_t token = first_token + (warp_column * kColumnTiles + tile) * 4 + lane % 4;
    if (token >= arguments.num_tokens) continue;
    const InputTotal total = SumTotals(TrailerOf(arguments, token));
#pragma unroll
    for (int m_tile = 0; m_tile < kWarpMTiles; ++m_tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = first_row + m_tile * kMTileRows + half * 8;
        if (row >= matrix.rows) continue;
        PutOutput(arguments, token, row,
                  FinishBits(accumulators[m_tile][tile][2 * half],
                             accumulators[m_tile][tile][2 * half + 1], total,
                             matrix.row_scales[row], BiasOf(matrix, row)));
      }
    }
  }
}

template <typename Shape>
cudaError_t LaunchBitTile(const ProductArguments& arguments, cudaStream_t stream) {
  const cudaError_t error = cudaFuncSetAttribute(
      BitProductTiled<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
  if (error != cudaSuccess) return error;
  constexpr int kRows = Shape::kMTiles * kMTileRows;
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
