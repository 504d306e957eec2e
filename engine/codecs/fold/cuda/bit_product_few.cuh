// Products of sign bits with 1 to 16 tokens.
//
//              K warps: bit steps k, k + num_k_warps, ...
//   16 rows  [ warp 0 ][ warp 1 ] ... [ warp 7 ]      a block: 8 warps, a group of row tiles for
//   16 rows  [        ][        ] ... [        ]      each num_k_warps of them
//   ...        sums of the warps meet in shared memory
//
// A warp keeps the inputs of its bit steps in registers and goes down the row tiles, so that
// nothing but the bits streams past: one 16-byte load a lane, 32 logic operations and 4 shifts for
// 16 rows by 256 columns, and 8 instructions for every 4 tokens (a token is two columns of the
// instruction, its high and its low bytes). The registers are the bits where they stand, `word &
// 0x01010101 << b`: sums of different b are kept apart and shifted at the end, as far as there are
// registers.
//
// Bounds a multiprocessor and clock, for bits read: memory 18 bytes; logic at 64 lanes 28 bytes;
// issue 40 bytes. A block asks for its bits before it waits for the kernel that makes its inputs.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_FEW_CUH_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_FEW_CUH_

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/fold/cuda/bit_product.cuh"

namespace ultrasketch::cuda {

inline constexpr int kFewWarps = 8;
inline constexpr int kFewThreads = 32 * kFewWarps;
inline constexpr int kMostFewTokens = 16;
// Of instructions: 4 tokens.
inline constexpr int kTokensPerTile = 4;

// How the blocks divide a matrix.
struct FewPlan {
  int num_k_warps;      // a power of two up to kFewWarps
  int tiles_per_group;  // row tiles of a warp
  US_HOST_DEVICE int tiles_per_block() const { return kFewWarps / num_k_warps * tiles_per_group; }
  US_HOST_DEVICE int rows_per_block() const { return tiles_per_block() * kTileRows; }
};

// kTokenTiles: of 4 tokens. kSteps: bit steps whose inputs a warp keeps at once; with more, it goes
// down the row tiles again. kSets: sums kept apart. kRing: row tiles whose bits are in flight.
template <int kTokenTilesOf, int kStepsOf>
struct FewShape {
  static constexpr int kTokenTiles = kTokenTilesOf;
  static constexpr int kSteps = kStepsOf;
  static constexpr int kSets = kTokenTiles * kSteps <= 2 || kTokenTiles == 1 ? 4 : 2;
  static constexpr int kRing = kTokenTiles * kSteps >= 4 ? 1 : 4 / kSteps;
  static constexpr int kTokens = kTokenTiles * kTokensPerTile;
  static constexpr int kColumns = 8 * kTokenTiles;

  // Partial sums, row scales, biases.
  static int64_t SharedBytes(const FewPlan& plan) {
    return int64_t{plan.rows_per_block()} *
           (plan.num_k_warps * kColumns * int64_t{sizeof(int)} + 2 * int64_t{sizeof(float)});
  }
};

template <typename Shape>
__global__ void __launch_bounds__(kFewThreads, 2)
    BitProductFew(const __grid_constant__ ProductArguments arguments,
                  const __grid_constant__ FewPlan plan) {
  constexpr int kSteps = Shape::kSteps;
  constexpr int kTokenTiles = Shape::kTokenTiles;
  constexpr int kSets = Shape::kSets;
  constexpr int kRing = Shape::kRing;
  constexpr int kColumns = Shape::kColumns;
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ __align__(16) PreparedTrailer trailers[Shape::kTokens];
  AllowNextKernel();

  const PackedMatrix& matrix = arguments.matrix;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int num_k_warps = plan.num_k_warps;
  const int k_warp = warp % num_k_warps;
  const int group = warp / num_k_warps;
  const int rows_per_block = plan.rows_per_block();
  const int num_steps = static_cast<int>(matrix.num_steps) / kStepsPerBitStep;
  const int64_t last_tile = NumRowTiles(matrix.rows) - 1;
  const int64_t block_tile = int64_t{blockIdx.x} * plan.tiles_per_block();
  const int64_t block_row = block_tile * kTileRows;
  const int64_t first_tile = block_tile + group * plan.tiles_per_group;
  const int num_tokens = static_cast<int>(arguments.num_tokens);

  auto* partial = reinterpret_cast<int*>(shared);  // [row tile][k warp][16][kColumns]
  auto* row_scales = reinterpret_cast<float*>(partial + rows_per_block * num_k_warps * kColumns);
  float* biases = row_scales + rows_per_block;

  // Row tiles past the end repeat the last one; their sums are dropped.
  const auto bits_of = [&](int tile, int step) {
    const int64_t index = min(first_tile + tile, last_tile) * num_steps + step;
    return static_cast<const uint8_t*>(matrix.tiles) + index * kBitStepBytes;
  };
  uint4 ring[kRing][kSteps];
  const auto load_bits = [&](int tile, int first_step, uint4(&bits)[kSteps]) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int step = first_step + i * num_k_warps;
      if (step < num_steps) {
        bits[i] = __ldcs(reinterpret_cast<const uint4*>(bits_of(tile, step)) + lane);
      }
    }
  };
  const auto fill_ring = [&](int first_step) {
#pragma unroll
    for (int slot = 0; slot < kRing; ++slot) {
      if (slot < plan.tiles_per_group) load_bits(slot, first_step, ring[slot]);
    }
  };
  fill_ring(k_warp);
  FinishIssuingLoads();
  // The rest of the bits on their way to the second-level cache.
  for (int tile = 0; tile < plan.tiles_per_group; ++tile) {
    const int first = tile < kRing ? k_warp + kSteps * num_k_warps : k_warp;
    for (int step = first; step < num_steps; step += num_k_warps) {
      if (lane < kBitStepBytes / kLineBytes) Prefetch(bits_of(tile, step) + lane * kLineBytes);
    }
  }
  for (int row = thread; row < rows_per_block; row += kFewThreads) {
    if (block_row + row >= matrix.rows) break;
    CopyAsync4(row_scales + row, matrix.row_scales + block_row + row);
    if (matrix.bias != nullptr) {
      CopyAsync4(biases + row, matrix.bias + block_row + row);
    } else {
      biases[row] = 0.0f;
    }
  }
  WaitForKernelBefore();

  constexpr int kTrailerPieces = sizeof(PreparedTrailer) / 16;
  if (thread < num_tokens * kTrailerPieces) {
    const int token = thread / kTrailerPieces;
    const int piece = thread % kTrailerPieces * 16;
    CopyAsync16(reinterpret_cast<uint8_t*>(&trailers[token]) + piece,
                reinterpret_cast<const uint8_t*>(&TrailerOf(arguments, token)) + piece);
  }
  CommitCopies();
  // This thread's first output, as it was.
  float before = 0.0f;
  if (arguments.accumulate && thread / rows_per_block < num_tokens &&
      block_row + thread % rows_per_block < matrix.rows) {
    before =
        arguments.y[thread / rows_per_block * matrix.rows + block_row + thread % rows_per_block];
  }

  // This lane's column of an instruction is a token's high or low bytes. Tokens past the end repeat
  // the last one.
  const uint8_t* inputs[kTokenTiles];
#pragma unroll
  for (int tile = 0; tile < kTokenTiles; ++tile) {
    const int token = min(tile * kTokensPerTile + lane / 8, num_tokens - 1);
    inputs[tile] =
        PreparedRow(arguments, token) + lane / 4 % 2 * kPlaneBytes + lane % 4 * kChunkColumns;
  }

  for (int pass_step = k_warp; pass_step - k_warp < num_steps; pass_step += kSteps * num_k_warps) {
    const bool is_first_pass = pass_step == k_warp;
    // Words of chunks l % 4 and l % 4 + 4 of both halves.
    uint4 input[kSteps][kTokenTiles][2][2];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int step = pass_step + i * num_k_warps;
      if (step >= num_steps) break;
#pragma unroll
      for (int tile = 0; tile < kTokenTiles; ++tile) {
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          input[i][tile][part / 2][part % 2] = *reinterpret_cast<const uint4*>(
              inputs[tile] + step * (2 * kBitStepColumns) + part / 2 * (2 * kPlaneBytes) +
              part % 2 * (kPlaneBytes / 2));
        }
      }
    }
    if (!is_first_pass) fill_ring(pass_step);
    for (int first = 0; first < plan.tiles_per_group; first += kRing) {
#pragma unroll
      for (int slot = 0; slot < kRing; ++slot) {
        const int tile = first + slot;
        if (tile >= plan.tiles_per_group) break;
        int sums[kSets][kTokenTiles][4] = {};
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          if (pass_step + i * num_k_warps >= num_steps) break;
          const uint4 bits = ring[slot][i];
#pragma unroll
          for (int bit = 0; bit < kInstructionsPerBitStep; ++bit) {
            const int shift = bit / kSets * kSets;
            const uint32_t mask = kUnitMask << (bit % kSets);
            const uint32_t a[4] = {bits.x >> shift & mask, bits.y >> shift & mask,
                                   bits.z >> shift & mask, bits.w >> shift & mask};
#pragma unroll
            for (int token = 0; token < kTokenTiles; ++token) {
              const auto word = [&](int half) {
                const uint4& chunk = input[i][token][half][bit / kUnitsPerChunk];
                switch (bit % kUnitsPerChunk) {
                  case 0:
                    return chunk.x;
                  case 1:
                    return chunk.y;
                  case 2:
                    return chunk.z;
                  default:
                    return chunk.w;
                }
              };
              MultiplyBytes(a, {word(0), word(1)}, sums[bit % kSets][token]);
            }
          }
        }
        if (tile + kRing < plan.tiles_per_group) load_bits(tile + kRing, pass_step, ring[slot]);
        int* out =
            partial +
            ((group * plan.tiles_per_group + tile) * num_k_warps + k_warp) * kTileRows * kColumns +
            lane / 4 * kColumns + lane % 4 * 2;
#pragma unroll
        for (int token = 0; token < kTokenTiles; ++token) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            int2 sum = {0, 0};
#pragma unroll
            for (int set = 0; set < kSets; ++set) {
              sum.x += sums[set][token][2 * half] >> set;
              sum.y += sums[set][token][2 * half + 1] >> set;
            }
            auto* place = reinterpret_cast<int2*>(out + half * 8 * kColumns + token * 8);
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

  for (int output = thread; output < rows_per_block * num_tokens; output += kFewThreads) {
    const int row = output % rows_per_block;
    const int token = output / rows_per_block;
    if (block_row + row >= matrix.rows) continue;
    const int* in = partial + row / kTileRows * num_k_warps * kTileRows * kColumns +
                    row % kTileRows * kColumns + 2 * token;
    int2 sum = {0, 0};
    for (int k = 0; k < num_k_warps; ++k) {
      const int2 part = *reinterpret_cast<const int2*>(in + k * kTileRows * kColumns);
      sum.x += part.x;
      sum.y += part.y;
    }
    const float value =
        FinishBits(sum.x, sum.y, SumTotals(trailers[token]), row_scales[row], biases[row]);
    float* out = arguments.y + token * matrix.rows + block_row + row;
    if (arguments.accumulate) {
      *out = __fadd_rn(output == thread ? before : *out, value);
    } else {
      *out = value;
    }
  }
}

template <typename Shape>
cudaError_t LaunchFew(const ProductArguments& arguments, int num_k_warps, cudaStream_t stream) {
  // What two blocks of a multiprocessor have each.
  constexpr int64_t kMostSharedBytes = 100 * 1024;
  const int64_t num_tiles = NumRowTiles(arguments.matrix.rows);
  const int num_groups = kFewWarps / num_k_warps;
  const int64_t places = 2 * int64_t{arguments.num_multiprocessors} * num_groups;
  FewPlan plan = {num_k_warps, 1};
  const int64_t most_tiles = std::max<int64_t>(1, kMostSharedBytes / Shape::SharedBytes(plan));
  // As few rounds of blocks as fit, of equal length.
  const int64_t num_rounds = (num_tiles + places * most_tiles - 1) / (places * most_tiles);
  plan.tiles_per_group =
      static_cast<int>((num_tiles + places * num_rounds - 1) / (places * num_rounds));
  const int64_t shared_bytes = Shape::SharedBytes(plan);
  const cudaError_t error =
      cudaFuncSetAttribute(BitProductFew<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(shared_bytes));
  if (error != cudaSuccess) return error;
  const int64_t num_blocks = (num_tiles + plan.tiles_per_block() - 1) / plan.tiles_per_block();
  return LaunchKernel(BitProductFew<Shape>, dim3(static_cast<unsigned>(num_blocks)), kFewThreads,
                      static_cast<size_t>(shared_bytes), stream, arguments, plan);
}

// Up to kMostFewTokens tokens.
inline cudaError_t LaunchBitProductFew(const ProductArguments& arguments, cudaStream_t stream) {
  const int64_t num_steps = arguments.matrix.num_steps / kStepsPerBitStep;
  int num_k_warps = 1;
  while (num_k_warps < kFewWarps && 2 * num_k_warps <= num_steps) num_k_warps *= 2;
  const int64_t steps_each = (num_steps + num_k_warps - 1) / num_k_warps;
  if (arguments.num_tokens <= 4) {
    if (steps_each <= 1) return LaunchFew<FewShape<1, 1>>(arguments, num_k_warps, stream);
    if (steps_each <= 2) return LaunchFew<FewShape<1, 2>>(arguments, num_k_warps, stream);
    return LaunchFew<FewShape<1, 4>>(arguments, num_k_warps, stream);
  }
  if (arguments.num_tokens <= 8) {
    if (steps_each <= 1) return LaunchFew<FewShape<2, 1>>(arguments, num_k_warps, stream);
    return LaunchFew<FewShape<2, 2>>(arguments, num_k_warps, stream);
  }
  return LaunchFew<FewShape<4, 1>>(arguments, num_k_warps, stream);
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_FEW_CUH_
