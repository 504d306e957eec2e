// Products (GEMM) of packed weights with packed inputs, for codecs whose weights expand to fp16.
//
// A codec's `Weights` says how many bytes a K tile of an M tile has, and turns what a lane holds of
// it into the four registers of an instruction:
//
//   struct Weights {
//     static constexpr int kKTileBytes;  // of an M tile
//     struct Lane;                       // what a lane holds of a K tile, in registers
//     // From global or shared memory.
//     static __device__ Lane Load(const uint8_t* k_tile, int lane);
//     static __device__ void Expand(const Lane&, int instruction, uint32_t (&a)[4]);
//   };
//
// Few tokens (SkinnyProduct), bound by reading weights and by the latency of what is left:
//
//            K split 0  K split 1     K split 7     a block: kMTiles M tiles, 8 warps
//   16 rows [ warp 0 ] [ warp 1 ] ... [ warp 7 ]    each warp: one K split, all tokens
//            accumulators of the K splits meet in shared memory
//
// Weights go from device memory to registers, inputs from L2 to registers: nothing is read twice in
// a block, so shared memory would only be a detour.
//
// Many tokens (TiledProduct), bound by the tensor cores:
//
//                 kTokens tokens
//   128 rows  [ 4 x 2 warps of 32 rows x kTokens / 2 ]   both operands through shared memory, four
//                                                        stages of one K tile each
//
// A K split's accumulators are added to the totals when it is done: the same additions in the same
// order.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_PRODUCT_CUH_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_PRODUCT_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/cuda/product.h"
#include "engine/codecs/cuda/ptx/mma.cuh"
#include "engine/codecs/cuda/tile_layout.h"

namespace ultrasketch::cuda {

inline constexpr int kProductThreads = 256;

// A sum of one output, finished. Powers of two are exact, so that the order of the factors does not
// matter; the rest is written out, so that all kernels round alike.
__device__ inline float FinishSum(float sum, float token_scale, float row_scale, float bias) {
  return __fmaf_rn(sum * token_scale, row_scale, bias);
}

// Adds to an output. Additions are reductions in L2, one for each output: nothing waits for what
// was there. Numbers below 2^-126 count as zero in them, so every kernel adds this way.
__device__ inline void AddOutput(float* out, float value) {
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(out), "f"(value) : "memory");
}

// Writes an output, or adds it to what is there.
__device__ inline void PutOutput(float* out, bool accumulate, float value) {
  if (accumulate) {
    AddOutput(out, value);
  } else {
    *out = value;
  }
}
__device__ inline void PutOutput(const ProductArguments& arguments, int64_t token, int64_t row,
                                 float value) {
  PutOutput(arguments.y + token * arguments.matrix.rows + row, arguments.accumulate, value);
}

__device__ inline const uint8_t* PackedInputRow(const ProductArguments& arguments, int64_t token) {
  return static_cast<const uint8_t*>(arguments.packed_input) +
         token * PackedInputBytes(arguments.matrix.num_k_tiles);
}

__device__ inline float TokenScale(const ProductArguments& arguments, int64_t token) {
  return *reinterpret_cast<const float*>(PackedInputRow(arguments, token) +
                                         PackedScaleOffset(arguments.matrix.num_k_tiles));
}

__device__ inline float BiasOf(const PackedMatrix& matrix, int64_t row) {
  return matrix.bias != nullptr ? matrix.bias[row] : 0.0f;
}

// A lane's two pieces of a token's K tile: two registers for each instruction.
struct LaneInput {
  uint4 low;   // instructions 0 and 1
  uint4 high;  // 2 and 3
};

__device__ inline uint2 InstructionInput(const LaneInput& input, int instruction) {
  switch (instruction) {
    case 0:
      return {input.low.x, input.low.y};
    case 1:
      return {input.low.z, input.low.w};
    case 2:
      return {input.high.x, input.high.y};
    default:
      return {input.high.z, input.high.w};
  }
}

// ---- Few tokens ----

// Grid: (blocks of kMTiles M tiles, blocks of 8 * kTokenTiles tokens). The bound of two blocks an
// SM is what makes the compiler spend registers on loads in flight: kUnroll K tiles of inputs, and
// as many of weights one round ahead. The first weights and the rows' scales are on their way
// before the kernel that writes the inputs has ended.
template <typename Weights, int kMTiles, int kTokenTiles, int kUnroll>
__global__ void __launch_bounds__(kProductThreads, 2)
    SkinnyProduct(const __grid_constant__ ProductArguments arguments) {
  constexpr int kRows = kMTiles * kMTileRows;
  constexpr int kTokens = kTokenTiles * 8;
  constexpr int kStride = kRows + 4;  // spreads the lanes' stores over all banks
  // Each thread finishes outputs of one row.
  constexpr int kTokensAtOnce = kProductThreads / kRows;
  constexpr int kOutputs = (kTokens + kTokensAtOnce - 1) / kTokensAtOnce;
  __shared__ float partial[kNumKSplits][kTokens][kStride];
  LaunchDependents();

  const PackedMatrix& matrix = arguments.matrix;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int k_split = thread / 32;
  const int64_t num_k_tiles = matrix.num_k_tiles;
  const int64_t last_tile = NumMTiles(matrix.rows) - 1;
  const int64_t first_tile = int64_t{blockIdx.x} * kMTiles;
  const int64_t first_token = int64_t{blockIdx.y} * kTokens;

  // Tiles past the end repeat the last one, and tokens likewise; their sums are dropped.
  const uint8_t* weights[kMTiles];
#pragma unroll
  for (int tile = 0; tile < kMTiles; ++tile) {
    const int64_t index = min(first_tile + tile, last_tile);
    weights[tile] =
        static_cast<const uint8_t*>(matrix.tiles) + index * num_k_tiles * Weights::kKTileBytes;
  }
  const uint8_t* inputs[kTokenTiles];
#pragma unroll
  for (int tile = 0; tile < kTokenTiles; ++tile) {
    const int64_t token = min(first_token + tile * 8 + lane / 4, arguments.num_tokens - 1);
    inputs[tile] = PackedInputRow(arguments, token) + lane % 4 * 16;
  }

  using Lane = typename Weights::Lane;
  const int64_t begin = KSplitBegin(k_split, num_k_tiles);
  const int64_t end = KSplitBegin(k_split + 1, num_k_tiles);
  // K tiles past the K split's end repeat its last one, and are not multiplied.
  const auto load_weights = [&](int64_t k_tile, Lane(&out)[kUnroll][kMTiles]) {
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
#pragma unroll
      for (int tile = 0; tile < kMTiles; ++tile) {
        out[i][tile] =
            Weights::Load(weights[tile] + min(k_tile + i, end - 1) * Weights::kKTileBytes, lane);
      }
    }
  };

  Lane next[kUnroll][kMTiles];
  if (begin < end) load_weights(begin, next);
  const int64_t row = first_tile * kMTileRows + thread % kRows;
  const bool is_row = row < matrix.rows;
  const float row_scale = is_row ? matrix.row_scales[row] : 0.0f;
  const float bias = is_row ? BiasOf(matrix, row) : 0.0f;
  CompilerBarrier();
  WaitForGridDependency();

  float accumulators[kMTiles][kTokenTiles][4] = {};
  for (int64_t k_tile = begin; k_tile < end; k_tile += kUnroll) {
    LaneInput input[kUnroll][kTokenTiles];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
#pragma unroll
      for (int tile = 0; tile < kTokenTiles; ++tile) {
        const auto* source =
            reinterpret_cast<const uint4*>(inputs[tile] + min(k_tile + i, end - 1) * 128);
        input[i][tile] = {source[0], source[4]};
      }
    }
    Lane current[kUnroll][kMTiles];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
#pragma unroll
      for (int tile = 0; tile < kMTiles; ++tile) current[i][tile] = next[i][tile];
    }
    if (k_tile + kUnroll < end) load_weights(k_tile + kUnroll, next);
    CompilerBarrier();
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if (k_tile + i >= end) break;
#pragma unroll
      for (int instruction = 0; instruction < kInstructionsPerKTile; ++instruction) {
#pragma unroll
        for (int tile = 0; tile < kMTiles; ++tile) {
          uint32_t a[4];
          Weights::Expand(current[i][tile], instruction, a);
#pragma unroll
          for (int token = 0; token < kTokenTiles; ++token) {
            MmaF16(a, InstructionInput(input[i][token], instruction), accumulators[tile][token]);
          }
        }
      }
    }
  }

#pragma unroll
  for (int tile = 0; tile < kMTiles; ++tile) {
#pragma unroll
    for (int token = 0; token < kTokenTiles; ++token) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        partial[k_split][token * 8 + lane % 4 * 2 + i % 2]
               [tile * kMTileRows + lane / 4 + i / 2 * 8] = accumulators[tile][token][i];
      }
    }
  }
  // Meanwhile, what the outputs are made of besides.
  float token_scales[kOutputs];
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    const int64_t token = first_token + i * kTokensAtOnce + thread / kRows;
    token_scales[i] = is_row && token < arguments.num_tokens ? TokenScale(arguments, token) : 0.0f;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    const int block_token = i * kTokensAtOnce + thread / kRows;
    const int64_t token = first_token + block_token;
    if (!is_row || block_token >= kTokens || token >= arguments.num_tokens) continue;
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < kNumKSplits; ++c) {
      sum = __fadd_rn(sum, partial[c][block_token][thread % kRows]);
    }
    PutOutput(arguments, token, row, FinishSum(sum, token_scales[i], row_scale, bias));
  }
}

// ---- Many tokens ----

inline constexpr int kTiledMTiles = 8;
inline constexpr int kTiledRows = kTiledMTiles * kMTileRows;
inline constexpr int kTiledStages = 4;

template <typename Weights, int kTokens>
constexpr int TiledSharedBytes() {
  return kTiledStages * (kTiledMTiles * Weights::kKTileBytes + kTokens * 128);
}

// Grid: (blocks of kTiledRows rows, blocks of kTokens tokens). Blocks that follow each other share
// their tokens and so their inputs, which are larger than the weights. An SM has room for kBlocks
// of them.
template <typename Weights, int kTokens, int kBlocks>
__global__ void __launch_bounds__(kProductThreads, kBlocks)
    TiledProduct(const __grid_constant__ ProductArguments arguments) {
  constexpr int kWarpTokenTiles = kTokens / 16;
  constexpr int kWarpMTiles = 2;
  constexpr int kWeightBytes = kTiledMTiles * Weights::kKTileBytes;
  constexpr int kStageBytes = kWeightBytes + kTokens * 128;
  extern __shared__ __align__(128) uint8_t stages[];
  LaunchDependents();
  WaitForGridDependency();

  const PackedMatrix& matrix = arguments.matrix;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp_row = thread / 32 / 2;
  const int warp_token = thread / 32 % 2;
  const int64_t num_k_tiles = matrix.num_k_tiles;
  const int64_t last_tile = NumMTiles(matrix.rows) - 1;
  const int64_t first_tile = int64_t{blockIdx.x} * kTiledMTiles;
  const int64_t first_token = int64_t{blockIdx.y} * kTokens;

  // Tiles and tokens past the end repeat the last one; their sums are dropped.
  const auto fetch = [&](int64_t k_tile) {
    uint8_t* stage = stages + k_tile % kTiledStages * kStageBytes;
    constexpr int kPiecesPerTile = Weights::kKTileBytes / 16;
#pragma unroll
    for (int first = 0; first < kTiledMTiles * kPiecesPerTile; first += kProductThreads) {
      const int piece = first + thread;
      if (kTiledMTiles * kPiecesPerTile < kProductThreads &&
          piece >= kTiledMTiles * kPiecesPerTile) {
        break;
      }
      const int64_t tile = min(first_tile + piece / kPiecesPerTile, last_tile);
      CopyAsync16(stage + piece * 16, static_cast<const uint8_t*>(matrix.tiles) +
                                          (tile * num_k_tiles + k_tile) * Weights::kKTileBytes +
                                          piece % kPiecesPerTile * 16);
    }
#pragma unroll
    for (int first = 0; first < kTokens * 8; first += kProductThreads) {
      const int piece = (first + thread) % 8;
      const int row = (first + thread) / 8;
      const int64_t token = min(first_token + row, arguments.num_tokens - 1);
      // Swizzled, so that the eight 16-byte pieces that lanes read at a time are in eight places.
      CopyAsync16(stage + kWeightBytes + row * 128 + (piece ^ (row % 8)) * 16,
                  static_cast<const uint8_t*>(arguments.packed_input) +
                      token * PackedInputBytes(num_k_tiles) + k_tile * 128 + piece * 16);
    }
  };

  float accumulators[kWarpMTiles][kWarpTokenTiles][4] = {};
  float totals[kWarpMTiles][kWarpTokenTiles][4] = {};
  const auto multiply = [&](int64_t k_tile) {
    const uint8_t* stage = stages + k_tile % kTiledStages * kStageBytes;
    typename Weights::Lane weights[kWarpMTiles];
#pragma unroll
    for (int row = 0; row < kWarpMTiles; ++row) {
      weights[row] =
          Weights::Load(stage + (warp_row * kWarpMTiles + row) * Weights::kKTileBytes, lane);
    }
    uint32_t a[kWarpMTiles][kInstructionsPerKTile][4];
#pragma unroll
    for (int row = 0; row < kWarpMTiles; ++row) {
#pragma unroll
      for (int instruction = 0; instruction < kInstructionsPerKTile; ++instruction) {
        Weights::Expand(weights[row], instruction, a[row][instruction]);
      }
    }
#pragma unroll
    for (int token = 0; token < kWarpTokenTiles; ++token) {
      const int row_of_stage = (warp_token * kWarpTokenTiles + token) * 8 + lane / 4;
      const uint8_t* source = stage + kWeightBytes + row_of_stage * 128;
      const int piece = lane % 4;
      const int swizzle = row_of_stage % 8;
      const LaneInput input = {
          *reinterpret_cast<const uint4*>(source + (piece ^ swizzle) * 16),
          *reinterpret_cast<const uint4*>(source + ((piece + 4) ^ swizzle) * 16)};
#pragma unroll
      for (int instruction = 0; instruction < kInstructionsPerKTile; ++instruction) {
#pragma unroll
        for (int row = 0; row < kWarpMTiles; ++row) {
          MmaF16(a[row][instruction], InstructionInput(input, instruction),
                 accumulators[row][token]);
        }
      }
    }
  };
  const auto finish_k_split = [&] {
#pragma unroll
    for (int row = 0; row < kWarpMTiles; ++row) {
#pragma unroll
      for (int token = 0; token < kWarpTokenTiles; ++token) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          totals[row][token][i] = __fadd_rn(totals[row][token][i], accumulators[row][token][i]);
          accumulators[row][token][i] = 0.0f;
        }
      }
    }
  };

#pragma unroll
  for (int k_tile = 0; k_tile < kTiledStages - 1; ++k_tile) {
    if (k_tile < num_k_tiles) fetch(k_tile);
    CommitCopies();
  }
  int k_split = 0;
  for (int64_t k_tile = 0; k_tile < num_k_tiles; ++k_tile) {
    WaitForCopies<kTiledStages - 2>();
    __syncthreads();
    // Into the stage that all warps left before the barrier.
    if (k_tile + kTiledStages - 1 < num_k_tiles) fetch(k_tile + kTiledStages - 1);
    CommitCopies();
    multiply(k_tile);
    bool k_split_ends = false;
    while (k_split < kNumKSplits && KSplitBegin(k_split + 1, num_k_tiles) <= k_tile + 1) {
      ++k_split;
      k_split_ends = true;
    }
    if (k_split_ends) finish_k_split();
  }

  // This lane's outputs are of two rows of each M tile and two tokens of each token tile.
  float row_scales[kWarpMTiles][2];
  float biases[kWarpMTiles][2];
  const int64_t first_row = (first_tile + warp_row * kWarpMTiles) * kMTileRows + lane / 4;
#pragma unroll
  for (int tile = 0; tile < kWarpMTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first_row + tile * kMTileRows + half * 8;
      row_scales[tile][half] = row < matrix.rows ? matrix.row_scales[row] : 0.0f;
      biases[tile][half] = row < matrix.rows ? BiasOf(matrix, row) : 0.0f;
    }
  }
#pragma unroll
  for (int i = 0; i < 2 * kWarpTokenTiles; ++i) {
    const int64_t token =
        first_token + (warp_token * kWarpTokenTiles + i / 2) * 8 + lane % 4 * 2 + i % 2;
    if (token >= arguments.num_tokens) continue;
    const float token_scale = TokenScale(arguments, token);
#pragma unroll
    for (int tile = 0; tile < kWarpMTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = tile * kMTileRows + half * 8;
        if (first_row + row >= matrix.rows) continue;
        const float value = FinishSum(totals[tile][i / 2][half * 2 + i % 2], token_scale,
                                      row_scales[tile][half], biases[tile][half]);
        PutOutput(arguments, token, first_row + row, value);
      }
    }
  }
}

// ---- Which of them ----

template <typename Weights, int kMTiles, int kTokenTiles, int kUnroll>
cudaError_t LaunchSkinny(const ProductArguments& arguments, cudaStream_t stream) {
  const dim3 grid(
      static_cast<unsigned>((NumMTiles(arguments.matrix.rows) + kMTiles - 1) / kMTiles),
      static_cast<unsigned>((arguments.num_tokens + 8 * kTokenTiles - 1) / (8 * kTokenTiles)));
  return LaunchKernel(SkinnyProduct<Weights, kMTiles, kTokenTiles, kUnroll>, grid, kProductThreads,
                      /*shared_bytes=*/0, stream, arguments);
}

template <typename Weights, int kTokens, int kBlocks>
cudaError_t LaunchTiled(const ProductArguments& arguments, cudaStream_t stream) {
  constexpr int kSharedBytes = TiledSharedBytes<Weights, kTokens>();
  const cudaError_t error =
      cudaFuncSetAttribute(TiledProduct<Weights, kTokens, kBlocks>,
                           cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>((arguments.matrix.rows + kTiledRows - 1) / kTiledRows),
                  static_cast<unsigned>((arguments.num_tokens + kTokens - 1) / kTokens));
  return LaunchKernel(TiledProduct<Weights, kTokens, kBlocks>, grid, kProductThreads, kSharedBytes,
                      stream, arguments);
}

// Two M tiles a block where that leaves two blocks for every SM, since each block reads all of the
// input.
template <typename Weights>
cudaError_t LaunchProductOf(const ProductArguments& arguments, cudaStream_t stream) {
  const int64_t num_tiles = NumMTiles(arguments.matrix.rows);
  const int64_t num_sms = arguments.num_sms;
  const bool two_tiles = num_tiles >= 4 * num_sms;
  constexpr int kUnroll = Weights::kUnroll;
  constexpr int kHalfUnroll = kUnroll > 1 ? kUnroll / 2 : 1;
  if (arguments.num_tokens <= 8) {
    return two_tiles ? LaunchSkinny<Weights, 2, 1, kHalfUnroll>(arguments, stream)
                     : LaunchSkinny<Weights, 1, 1, kUnroll>(arguments, stream);
  }
  if (arguments.num_tokens <= 16) {
    return two_tiles ? LaunchSkinny<Weights, 2, 2, kHalfUnroll>(arguments, stream)
                     : LaunchSkinny<Weights, 1, 2, kHalfUnroll>(arguments, stream);
  }
  const int64_t row_blocks = (num_tiles + kTiledMTiles - 1) / kTiledMTiles;
  if (arguments.num_tokens <= 32 && row_blocks < num_sms) {
    return LaunchSkinny<Weights, 1, 4, 1>(arguments, stream);
  }
  const auto fills_twice = [&](int64_t tokens_each) {
    const int64_t token_blocks = (arguments.num_tokens + tokens_each - 1) / tokens_each;
    return row_blocks * token_blocks >= 2 * num_sms;
  };
  if (arguments.num_tokens > 64 && fills_twice(128)) {
    return LaunchTiled<Weights, 128, 1>(arguments, stream);
  }
  // Where there are few blocks, two of them would come to lie on one SM while others have none.
  return fills_twice(64) ? LaunchTiled<Weights, 64, 2>(arguments, stream)
                         : LaunchTiled<Weights, 64, 1>(arguments, stream);
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_PRODUCT_CUH_
