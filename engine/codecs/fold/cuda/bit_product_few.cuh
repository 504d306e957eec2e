// Products of sign bits with 1 to 16 tokens.
//
//              K warps: bit steps k, k + num_k_warps, ...
//   16 rows  [ warp 0 ][ warp 1 ] ... [ warp 7 ]      a block: 8 warps or 16, a group of row tiles
//   16 rows  [        ][        ] ... [        ]      for each num_k_warps of them
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
// issue 40 bytes. A block asks for its bits before it waits for the kernel that makes its inputs,
// or for the one before that, where it makes its inputs itself.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_FEW_CUH_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_FEW_CUH_

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/cuda/sketch.h"
#include "engine/codecs/fold/cuda/bit_product.cuh"

namespace ultrasketch::cuda {

inline constexpr int kMostFewTokens = 16;
// Of instructions: 4 tokens.
inline constexpr int kTokensPerTile = 4;
// What two blocks of a multiprocessor of compute capability 9.0 have each; others may allow less.
inline constexpr int64_t kMostFewSharedBytes = 112 * 1024;
// More than the kernels have besides, declared in them.
inline constexpr int64_t kStaticFewBytes = 2048;

// How the blocks divide a matrix. Gated: its first half of rows are gates of the second; row tiles
// are taken in pairs of both, and silu(gate) * up is what is written, [num_tokens][rows / 2].
struct FewPlan {
  int num_warps;        // of a block
  int num_k_warps;      // a power of two up to num_warps
  int tiles_per_group;  // row tiles of a warp
  bool is_gated;
  US_HOST_DEVICE int tiles_per_block() const { return num_warps / num_k_warps * tiles_per_group; }
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

// Where inputs come from. This: from device memory, where a kernel before left them prepared.
// Others have kInBlock, and make prepared rows in a block's shared memory `memory` of SharedBytes
// bytes: Begin before the wait for the kernel before, Prepare after it, with a barrier at its end.
struct PreparedInputs {
  static constexpr bool kInBlock = false;
  static constexpr int kWarps = 8;
  int64_t SharedBytes(int64_t /*num_tokens*/) const { return 0; }
};

template <typename Shape, typename Inputs>
__global__ void __launch_bounds__(Inputs::kWarps * 32, 2)
    BitProductFew(const __grid_constant__ ProductArguments arguments,
                  const __grid_constant__ FewPlan plan, const __grid_constant__ Inputs inputs_of) {
  constexpr int kWarps = Inputs::kWarps;
  constexpr int kThreads = kWarps * 32;
  constexpr int kSteps = Shape::kSteps;
  constexpr int kTokenTiles = Shape::kTokenTiles;
  constexpr int kSets = kWarps > 8 ? 2 : Shape::kSets;
  // Where a block makes its inputs, short code counts for more than loads in flight.
  constexpr int kMostRing = !Inputs::kInBlock ? Shape::kRing : kWarps > 8 ? 1 : 2;
  constexpr int kRing = kMostRing < Shape::kRing ? kMostRing : Shape::kRing;
  constexpr int kColumns = Shape::kColumns;
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ __align__(16) PreparedTrailer staged_trailers[Inputs::kInBlock ? 1 : Shape::kTokens];
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
  const int num_rows = static_cast<int>(matrix.rows);
  const int last_tile = static_cast<int>(NumRowTiles(num_rows)) - 1;
  const int block_tile = static_cast<int>(blockIdx.x) * plan.tiles_per_block();
  const int block_row = block_tile * kTileRows;
  const int first_tile = block_tile + group * plan.tiles_per_group;
  const int num_tokens = static_cast<int>(arguments.num_tokens);

  auto* partial = reinterpret_cast<int*>(shared);  // [row tile][k warp][16][kColumns]
  auto* row_scales = reinterpret_cast<float*>(partial + rows_per_block * num_k_warps * kColumns);
  float* biases = row_scales + rows_per_block;
  [[maybe_unused]] auto* const input_memory = reinterpret_cast<uint8_t*>(biases + rows_per_block);

  // The matrix's tile at a place in the order of the blocks. Places past the end repeat the last
  // tile; their sums are dropped.
  const auto tile_at = [&](int place) {
    place = min(place, last_tile);
    return plan.is_gated ? place % 2 * ((last_tile + 1) / 2) + place / 2 : place;
  };
  const auto bits_of = [&](int tile, int step) {
    const int index = tile_at(first_tile + tile) * num_steps + step;
    return static_cast<const uint8_t*>(matrix.tiles) + int64_t{index} * kBitStepBytes;
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
#pragma unroll 1
  for (int tile = 0; tile < plan.tiles_per_group; ++tile) {
    const int first = tile < kRing ? k_warp + kSteps * num_k_warps : k_warp;
#pragma unroll 1
    for (int step = first; step < num_steps; step += num_k_warps) {
      if (lane < kBitStepBytes / kLineBytes) Prefetch(bits_of(tile, step) + lane * kLineBytes);
    }
  }
#pragma unroll 1
  for (int row = thread; row < rows_per_block; row += kThreads) {
    if (block_row + row >= num_rows) break;
    const int matrix_row = tile_at(block_tile + row / kTileRows) * kTileRows + row % kTileRows;
    CopyAsync4(row_scales + row, matrix.row_scales + matrix_row);
    if (matrix.bias != nullptr) {
      CopyAsync4(biases + row, matrix.bias + matrix_row);
    } else {
      biases[row] = 0.0f;
    }
  }
  [[maybe_unused]] InputSketch sketch;
  if constexpr (Inputs::kInBlock) sketch = inputs_of.Begin(input_memory);
  WaitForKernelBefore();

  const uint8_t* prepared = static_cast<const uint8_t*>(arguments.prepared);
  if constexpr (Inputs::kInBlock) {
    prepared = inputs_of.Prepare(sketch, num_tokens, input_memory);
  } else {
    constexpr int kTrailerPieces = sizeof(PreparedTrailer) / 16;
    if (thread < num_tokens * kTrailerPieces) {
      const int token = thread / kTrailerPieces;
      const int piece = thread % kTrailerPieces * 16;
      CopyAsync16(reinterpret_cast<uint8_t*>(&staged_trailers[token]) + piece,
                  reinterpret_cast<const uint8_t*>(&TrailerOf(arguments, token)) + piece);
    }
    CommitCopies();
  }
  const int64_t prepared_bytes = PreparedRowBytes(matrix.num_steps);

  // This lane's column of an instruction is a token's high or low bytes. Tokens past the end repeat
  // the last one.
  const uint8_t* inputs[kTokenTiles];
#pragma unroll
  for (int tile = 0; tile < kTokenTiles; ++tile) {
    const int token = min(tile * kTokensPerTile + lane / 8, num_tokens - 1);
    inputs[tile] =
        prepared + token * prepared_bytes + lane / 4 % 2 * kPlaneBytes + lane % 4 * kChunkColumns;
  }

#pragma unroll 1
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
#pragma unroll 1
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

  const auto output_of = [&](int row, int token) {
    const int* in = partial + row / kTileRows * num_k_warps * kTileRows * kColumns +
                    row % kTileRows * kColumns + 2 * token;
    int2 sum = {0, 0};
#pragma unroll
    for (int k = 0; k < kWarps; ++k) {
      if (k >= num_k_warps) break;
      const int2 part = *reinterpret_cast<const int2*>(in + k * kTileRows * kColumns);
      sum.x += part.x;
      sum.y += part.y;
    }
    const auto& trailer =
        Inputs::kInBlock
            ? *reinterpret_cast<const PreparedTrailer*>(prepared + token * prepared_bytes +
                                                        PreparedScaleOffset(matrix.num_steps))
            : staged_trailers[token];
    return FinishBits(sum.x, sum.y, SumTotals(trailer), row_scales[row], biases[row]);
  };
  // Of pairs of tiles, or of tiles.
  const int halves = plan.is_gated ? 2 : 1;
  const int block_outputs = rows_per_block / halves;
  const int first_output = block_row / halves;
  const int num_outputs = num_rows / halves;
#pragma unroll 1
  for (int index = thread; index < block_outputs * num_tokens; index += kThreads) {
    const int token = index / block_outputs;
    const int output = index - token * block_outputs;
    if (first_output + output >= num_outputs) continue;
    const int row =
        plan.is_gated ? output / kTileRows * (2 * kTileRows) + output % kTileRows : output;
    float gate = 0.0f;
    float value = 0.0f;
#pragma unroll 1
    for (int half = 0; half < halves; ++half) {
      gate = value;
      value = output_of(row + half * kTileRows, token);
    }
    if (plan.is_gated) {
      arguments.y[int64_t{token} * num_outputs + first_output + output] = SwiGluValue(gate, value);
    } else {
      PutOutput(arguments, token, first_output + output, value);
    }
  }
}

template <typename Shape, typename Inputs>
cudaError_t LaunchFew(const ProductArguments& arguments, int num_k_warps, bool is_gated,
                      const Inputs& inputs, cudaStream_t stream) {
  const int64_t num_tiles = NumRowTiles(arguments.matrix.rows);
  const int num_groups = Inputs::kWarps / num_k_warps;
  const int64_t places = 2 * int64_t{arguments.num_multiprocessors} * num_groups;
  const int64_t input_bytes = inputs.SharedBytes(arguments.num_tokens);
  FewPlan plan = {Inputs::kWarps, num_k_warps, 1, is_gated};
  const int64_t most_bytes =
      std::min(kMostFewSharedBytes, arguments.max_shared_bytes - kStaticFewBytes) - input_bytes;
  const int64_t most_tiles = std::max<int64_t>(1, most_bytes / Shape::SharedBytes(plan));
  // As few rounds of blocks as fit, of equal length.
  const int64_t num_rounds = (num_tiles + places * most_tiles - 1) / (places * most_tiles);
  plan.tiles_per_group =
      static_cast<int>((num_tiles + places * num_rounds - 1) / (places * num_rounds));
  // Pairs stay together.
  if (is_gated && plan.tiles_per_block() % 2 != 0) {
    plan.tiles_per_group += plan.tiles_per_group < most_tiles ? 1 : -1;
  }
  const int64_t shared_bytes = Shape::SharedBytes(plan) + input_bytes;
  const cudaError_t error = cudaFuncSetAttribute(BitProductFew<Shape, Inputs>,
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 static_cast<int>(shared_bytes));
  if (error != cudaSuccess) return error;
  const int64_t num_blocks = (num_tiles + plan.tiles_per_block() - 1) / plan.tiles_per_block();
  return LaunchKernel(BitProductFew<Shape, Inputs>, dim3(static_cast<unsigned>(num_blocks)),
                      Inputs::kWarps * 32, static_cast<size_t>(shared_bytes), stream, arguments,
                      plan, inputs);
}

// Warps that share a row's steps, and the steps of each.
struct FewSteps {
  int num_k_warps;
  int64_t steps_each;
};
inline FewSteps DivideSteps(const PackedMatrix& matrix, int num_warps) {
  const int64_t num_steps = matrix.num_steps / kStepsPerBitStep;
  int num_k_warps = 1;
  while (num_k_warps < num_warps && 2 * num_k_warps <= num_steps) num_k_warps *= 2;
  return {num_k_warps, (num_steps + num_k_warps - 1) / num_k_warps};
}

// Up to kTokensPerTile tokens.
template <typename Inputs>
cudaError_t LaunchBitProductTile(const ProductArguments& arguments, bool is_gated,
                                 const Inputs& inputs, cudaStream_t stream) {
  const auto [num_k_warps, steps_each] = DivideSteps(arguments.matrix, Inputs::kWarps);
  if (steps_each <= 1) {
    return LaunchFew<FewShape<1, 1>>(arguments, num_k_warps, is_gated, inputs, stream);
  }
  if (steps_each <= 2) {
    return LaunchFew<FewShape<1, 2>>(arguments, num_k_warps, is_gated, inputs, stream);
  }
  return LaunchFew<FewShape<1, 4>>(arguments, num_k_warps, is_gated, inputs, stream);
}

// Up to kMostFewTokens tokens.
inline cudaError_t LaunchBitProductFew(const ProductArguments& arguments, cudaStream_t stream) {
  const PreparedInputs inputs;
  const auto [num_k_warps, steps_each] = DivideSteps(arguments.matrix, PreparedInputs::kWarps);
  if (arguments.num_tokens <= kTokensPerTile) {
    return LaunchBitProductTile(arguments, /*is_gated=*/false, inputs, stream);
  }
  if (arguments.num_tokens > 2 * kTokensPerTile) {
    return LaunchFew<FewShape<4, 1>>(arguments, num_k_warps, false, inputs, stream);
  }
  if (steps_each <= 1) {
    return LaunchFew<FewShape<2, 1>>(arguments, num_k_warps, false, inputs, stream);
  }
  return LaunchFew<FewShape<2, 2>>(arguments, num_k_warps, false, inputs, stream);
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_FEW_CUH_
