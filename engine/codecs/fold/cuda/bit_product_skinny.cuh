// Products of sign bits with 1 to 16 tokens.
//
//              K warps: bit K tiles k, k + num_k_warps, ...
//   16 rows  [ warp 0 ][ warp 1 ] ... [ warp 7 ]      a block: 8 warps or 16, a group of M tiles
//   16 rows  [        ][        ] ... [        ]      for each num_k_warps of them
//   ...        sums of the warps meet in shared memory
//
// A warp keeps the inputs of its bit K tiles in registers and goes down the M tiles, so that
// nothing but the bits streams past: one 16-byte load a lane, 32 logic operations and 4 shifts for
// 16 rows by 256 columns, and 8 instructions for every 4 tokens (a token is two columns of the
// instruction, its high and its low bytes). The registers are the bits where they stand, `word &
// 0x01010101 << b`: sums of different b are kept apart and shifted at the end, as far as there are
// registers.
//
// Bounds an SM and cycle, for bits read: memory 18 bytes; logic at 64 lanes 28 bytes; issue 40
// bytes. A block asks for its bits before it waits for the kernel that makes its inputs.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_SKINNY_CUH_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_SKINNY_CUH_

#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cstdint>

#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/cuda/ptx/mma.cuh"
#include "engine/codecs/fold/cuda/bit_product.cuh"

namespace ultrasketch::cuda {

inline constexpr int kMaxSkinnyTokens = 16;
// Tokens of an instruction's eight columns.
inline constexpr int kTokensPerTile = 4;
// What two blocks of an SM of compute capability 9.0 have each; others may allow less.
inline constexpr int64_t kMaxSkinnySharedBytes = 112 * 1024;
// More than the kernels have besides, declared in them.
inline constexpr int64_t kStaticSkinnyBytes = 2048;
inline constexpr int kSkinnyWarps = 8;
inline constexpr int kSkinnyThreads = kSkinnyWarps * 32;

// How the blocks divide a matrix.
struct SkinnyPlan {
  int log2_k_warps;     // up to kSkinnyWarps
  int tiles_per_group;  // M tiles of a warp
  US_HOST_DEVICE int num_k_warps() const { return 1 << log2_k_warps; }
  US_HOST_DEVICE int tiles_per_block() const {
    return (kSkinnyWarps >> log2_k_warps) * tiles_per_group;
  }
  US_HOST_DEVICE int rows_per_block() const { return tiles_per_block() * kMTileRows; }
};

// kTokenTiles: of 4 tokens. kKTiles: bit K tiles whose inputs a warp keeps at once; with more, it
// goes down the M tiles again. kSets: sums kept apart. kRing: M tiles whose bits are in flight.
template <int kTokenTilesOf, int kKTilesOf>
struct SkinnyShape {
  static constexpr int kTokenTiles = kTokenTilesOf;
  static constexpr int kKTiles = kKTilesOf;
  static constexpr int kSets = kTokenTiles * kKTiles <= 2 || kTokenTiles == 1 ? 4 : 2;
  static constexpr int kRing = kTokenTiles * kKTiles >= 4 ? 1 : 4 / kKTiles;
  static constexpr int kTokens = kTokenTiles * kTokensPerTile;
  static constexpr int kColumns = 8 * kTokenTiles;

  // Partial sums, row scales, biases.
  static int64_t SharedBytes(const SkinnyPlan& plan) {
    return int64_t{plan.rows_per_block()} *
           (plan.num_k_warps() * kColumns * int64_t{sizeof(int)} + 2 * int64_t{sizeof(float)});
  }
};

template <typename Shape>
__global__ void __launch_bounds__(kSkinnyThreads, 2)
    BitProductSkinny(const __grid_constant__ ProductArguments arguments,
                     const __grid_constant__ SkinnyPlan plan) {
  constexpr int kKTiles = Shape::kKTiles;
  constexpr int kTokenTiles = Shape::kTokenTiles;
  constexpr int kSets = Shape::kSets;
  constexpr int kRing = Shape::kRing;
  constexpr int kColumns = Shape::kColumns;
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ __align__(16) InputTrailer staged_trailers[Shape::kTokens];
  LaunchDependents();

  const PackedMatrix& matrix = arguments.matrix;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int num_k_warps = plan.num_k_warps();
  const int k_warp = warp & (num_k_warps - 1);
  const int group = warp >> plan.log2_k_warps;
  const int rows_per_block = plan.rows_per_block();
  const int num_k_tiles = static_cast<int>(matrix.num_k_tiles) / kKTilesPerBitKTile;
  const int num_rows = static_cast<int>(matrix.rows);
  const int last_tile = static_cast<int>(NumMTiles(num_rows)) - 1;
  const int block_tile = static_cast<int>(blockIdx.x) * plan.tiles_per_block();
  const int block_row = block_tile * kMTileRows;
  const int first_tile = block_tile + group * plan.tiles_per_group;
  const int num_tokens = static_cast<int>(arguments.num_tokens);

  auto* partial = reinterpret_cast<int*>(shared);  // [M tile][k warp][16][kColumns]
  auto* row_scales = reinterpret_cast<float*>(partial + rows_per_block * num_k_warps * kColumns);
  float* biases = row_scales + rows_per_block;

  // Tiles past the end repeat the last one; their sums are dropped.
  const auto bits_of = [&](int tile, int k_tile) {
    const int index = min(first_tile + tile, last_tile) * num_k_tiles + k_tile;
    return static_cast<const uint8_t*>(matrix.tiles) + int64_t{index} * kBitKTileBytes;
  };
  uint4 ring[kRing][kKTiles];
  const auto load_bits = [&](int tile, int first_k_tile, uint4(&bits)[kKTiles]) {
#pragma unroll
    for (int i = 0; i < kKTiles; ++i) {
      const int k_tile = first_k_tile + i * num_k_warps;
      if (k_tile < num_k_tiles) {
        bits[i] = __ldcs(reinterpret_cast<const uint4*>(bits_of(tile, k_tile)) + lane);
      }
    }
  };
  const auto fill_ring = [&](int first_k_tile) {
#pragma unroll
    for (int slot = 0; slot < kRing; ++slot) {
      if (slot < plan.tiles_per_group) load_bits(slot, first_k_tile, ring[slot]);
    }
  };
  fill_ring(k_warp);
  CompilerBarrier();
  // The rest of the bits on their way to L2.
#pragma unroll 1
  for (int tile = 0; tile < plan.tiles_per_group; ++tile) {
    const int first = tile < kRing ? k_warp + kKTiles * num_k_warps : k_warp;
#pragma unroll 1
    for (int k_tile = first; k_tile < num_k_tiles; k_tile += num_k_warps) {
      if (lane < kBitKTileBytes / kLineBytes) Prefetch(bits_of(tile, k_tile) + lane * kLineBytes);
    }
  }
#pragma unroll 1
  for (int row = thread; row < rows_per_block; row += kSkinnyThreads) {
    const int matrix_row = block_row + row;
    if (matrix_row >= num_rows) break;
    CopyAsync4(row_scales + row, matrix.row_scales + matrix_row);
    if (matrix.bias != nullptr) {
      CopyAsync4(biases + row, matrix.bias + matrix_row);
    } else {
      biases[row] = 0.0f;
    }
  }
  // The output of each iteration of the thread is found without a division.
  int token = thread / rows_per_block;
  int output_row = thread - token * rows_per_block;
  Materialize(token);
  Materialize(output_row);
  WaitForGridDependency();

  const auto* const packed_input = static_cast<const uint8_t*>(arguments.packed_input);
  constexpr int kTrailerPieces = sizeof(InputTrailer) / 16;
  if (thread < num_tokens * kTrailerPieces) {
    const int of_token = thread / kTrailerPieces;
    const int piece = thread % kTrailerPieces * 16;
    CopyAsync16(reinterpret_cast<uint8_t*>(&staged_trailers[of_token]) + piece,
                reinterpret_cast<const uint8_t*>(&TrailerOf(arguments, of_token)) + piece);
  }
  CommitCopies();
  const int64_t packed_input_bytes = PackedInputBytes(matrix.num_k_tiles);

  // This lane's column of an instruction is a token's high or low bytes. Tokens past the end repeat
  // the last one.
  const uint8_t* inputs[kTokenTiles];
#pragma unroll
  for (int tile = 0; tile < kTokenTiles; ++tile) {
    const int of_token = min(tile * kTokensPerTile + lane / 8, num_tokens - 1);
    inputs[tile] = packed_input + of_token * packed_input_bytes + lane / 4 % 2 * kHiLoBytes +
                   lane % 4 * kRunColumns;
  }

#pragma unroll 1
  for (int pass_k_tile = k_warp; pass_k_tile - k_warp < num_k_tiles;
       pass_k_tile += kKTiles * num_k_warps) {
    const bool is_first_pass = pass_k_tile == k_warp;
    // Words of runs l % 4 and l % 4 + 4 of both halves.
    uint4 input[kKTiles][kTokenTiles][2][2];
#pragma unroll
    for (int i = 0; i < kKTiles; ++i) {
      const int k_tile = pass_k_tile + i * num_k_warps;
      if (k_tile >= num_k_tiles) break;
#pragma unroll
      for (int tile = 0; tile < kTokenTiles; ++tile) {
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          input[i][tile][part / 2][part % 2] = *reinterpret_cast<const uint4*>(
              inputs[tile] + k_tile * (2 * kBitKTileColumns) + part / 2 * (2 * kHiLoBytes) +
              part % 2 * (kHiLoBytes / 2));
        }
      }
    }
    if (!is_first_pass) fill_ring(pass_k_tile);
#pragma unroll 1
    for (int first = 0; first < plan.tiles_per_group; first += kRing) {
#pragma unroll
      for (int slot = 0; slot < kRing; ++slot) {
        const int tile = first + slot;
        if (tile >= plan.tiles_per_group) break;
        int accumulators[kSets][kTokenTiles][4] = {};
#pragma unroll
        for (int i = 0; i < kKTiles; ++i) {
          if (pass_k_tile + i * num_k_warps >= num_k_tiles) break;
          const uint4 bits = ring[slot][i];
#pragma unroll
          for (int bit = 0; bit < kInstructionsPerBitKTile; ++bit) {
            const int shift = bit / kSets * kSets;
            const uint32_t mask = kUnitMask << (bit % kSets);
            const uint32_t a[4] = {bits.x >> shift & mask, bits.y >> shift & mask,
                                   bits.z >> shift & mask, bits.w >> shift & mask};
#pragma unroll
            for (int token_tile = 0; token_tile < kTokenTiles; ++token_tile) {
              const auto word = [&](int half) {
                const uint4& run = input[i][token_tile][half][bit / kUnitsPerRun];
                switch (bit % kUnitsPerRun) {
                  case 0:
                    return run.x;
                  case 1:
                    return run.y;
                  case 2:
                    return run.z;
                  default:
                    return run.w;
                }
              };
              MmaS8(a, {word(0), word(1)}, accumulators[bit % kSets][token_tile]);
            }
          }
        }
        if (tile + kRing < plan.tiles_per_group) load_bits(tile + kRing, pass_k_tile, ring[slot]);
        int* out =
            partial +
            ((group * plan.tiles_per_group + tile) * num_k_warps + k_warp) * kMTileRows * kColumns +
            lane / 4 * kColumns + lane % 4 * 2;
#pragma unroll
        for (int token_tile = 0; token_tile < kTokenTiles; ++token_tile) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            int2 sum = {0, 0};
#pragma unroll
            for (int set = 0; set < kSets; ++set) {
              sum.x += accumulators[set][token_tile][2 * half] >> set;
              sum.y += accumulators[set][token_tile][2 * half + 1] >> set;
            }
            auto* place = reinterpret_cast<int2*>(out + half * 8 * kColumns + token_tile * 8);
            if (!is_first_pass) {
              sum.x += place->x;
              sum.y += place->y;
            }
            *place = sum;
          }
        }
      }
    }
  }
  WaitForCopies<0>();
  __syncthreads();

#pragma unroll 1
  for (; token < num_tokens; output_row += kSkinnyThreads) {
#pragma unroll 1
    for (; output_row >= rows_per_block; output_row -= rows_per_block) ++token;
    if (token >= num_tokens) break;
    if (block_row + output_row >= num_rows) continue;
    const int* in =
        partial +
        ((output_row / kMTileRows << plan.log2_k_warps) * kMTileRows + output_row % kMTileRows) *
            kColumns +
        2 * token;
    int2 sum = {0, 0};
#pragma unroll
    for (int k = 0; k < kSkinnyWarps; ++k) {
      if (k >= num_k_warps) break;
      const int2 part = *reinterpret_cast<const int2*>(in + k * kMTileRows * kColumns);
      sum.x += part.x;
      sum.y += part.y;
    }
    PutOutput(arguments, token, block_row + output_row,
              FinishBits(sum.x, sum.y, SumTotals(staged_trailers[token]), row_scales[output_row],
                         biases[output_row]));
  }
}

template <typename Shape>
cudaError_t LaunchFew(const ProductArguments& arguments, int num_k_warps, cudaStream_t stream) {
  const int64_t num_tiles = NumMTiles(arguments.matrix.rows);
  const int num_groups = kSkinnyWarps / num_k_warps;
  const int64_t places = 2 * int64_t{arguments.num_sms} * num_groups;
  SkinnyPlan plan = {std::countr_zero(static_cast<unsigned>(num_k_warps)), 1};
  const int64_t most_bytes =
      std::min<int64_t>(kMaxSkinnySharedBytes, arguments.max_shared_bytes - kStaticSkinnyBytes);
  const int64_t most_tiles = std::max<int64_t>(1, most_bytes / Shape::SharedBytes(plan));
  // As few rounds of blocks as fit, of equal length.
  const int64_t num_rounds = (num_tiles + places * most_tiles - 1) / (places * most_tiles);
  plan.tiles_per_group =
      static_cast<int>((num_tiles + places * num_rounds - 1) / (places * num_rounds));
  const int64_t shared_bytes = Shape::SharedBytes(plan);
  const cudaError_t error =
      cudaFuncSetAttribute(BitProductSkinny<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(shared_bytes));
  if (error != cudaSuccess) return error;
  const int64_t num_blocks = (num_tiles + plan.tiles_per_block() - 1) / plan.tiles_per_block();
  return LaunchKernel(BitProductSkinny<Shape>, dim3(static_cast<unsigned>(num_blocks)),
                      kSkinnyThreads, static_cast<size_t>(shared_bytes), stream, arguments, plan);
}

// Warps that share a row's K tiles, and the K tiles of each.
struct SkinnyKTiles {
  int num_k_warps;
  int64_t k_tiles_each;
};
inline SkinnyKTiles DivideKTiles(const PackedMatrix& matrix, int num_warps) {
  const int64_t num_k_tiles = matrix.num_k_tiles / kKTilesPerBitKTile;
  int num_k_warps = 1;
  while (num_k_warps < num_warps && 2 * num_k_warps <= num_k_tiles) num_k_warps *= 2;
  return {num_k_warps, (num_k_tiles + num_k_warps - 1) / num_k_warps};
}

// Up to kMaxSkinnyTokens tokens.
inline cudaError_t LaunchBitProductSkinny(const ProductArguments& arguments, cudaStream_t stream) {
  const auto [num_k_warps, k_tiles_each] = DivideKTiles(arguments.matrix, kSkinnyWarps);
  if (arguments.num_tokens > 2 * kTokensPerTile) {
    return LaunchFew<SkinnyShape<4, 1>>(arguments, num_k_warps, stream);
  }
  if (arguments.num_tokens > kTokensPerTile) {
    return k_tiles_each <= 1 ? LaunchFew<SkinnyShape<2, 1>>(arguments, num_k_warps, stream)
                             : LaunchFew<SkinnyShape<2, 2>>(arguments, num_k_warps, stream);
  }
  return k_tiles_each <= 1   ? LaunchFew<SkinnyShape<1, 1>>(arguments, num_k_warps, stream)
         : k_tiles_each <= 2 ? LaunchFew<SkinnyShape<1, 2>>(arguments, num_k_warps, stream)
                             : LaunchFew<SkinnyShape<1, 4>>(arguments, num_k_warps, stream);
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_SKINNY_CUH_
