// Products with grouped integers: an output head's, with many rows and any number of tokens; with
// more than 8 and wgmma, see grouped_product_hopper.cu.
//
// Few tokens (GroupedFew), bound by reading weights: a block takes some row tiles, each of its 8
// warps a chunk of their columns, as SkinnyProduct does (product.cuh). An int8 weight is an operand
// as it lies, so that a row tile's step takes some 30 instructions, 4 tokens, where expanding it to
// binary16 took 110.
//
// More tokens (GroupedTiled):
//
//                 kTokens tokens
//   128 rows  [ 4 x 2 warps of 32 rows x kTokens / 2 ]   both operands through shared memory, three
//                                                        stages of two steps each
//
// Bound: sums of bytes cost the tensor cores what a product of binary16 would, two planes of input
// at twice the rate; scaling a group's sums, six instructions for two, about as much.
#include <type_traits>

#include "engine/codecs/cuda/byte_product.cuh"
#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/grouped/cuda/grouped_product.h"
#include "engine/codecs/grouped/cuda/grouped_product_hopper.h"
#include "engine/codecs/grouped/cuda/grouped_weights.cuh"

namespace ultrasketch::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTokensPerTile = 4;  // an instruction's eight columns are their planes

// A step of a row tile with the scales of the lane's rows.
template <typename Weights>
struct ScaledWeights {
  static constexpr int kStepBytes = Weights::kIntegerBytes + kStepScaleBytes;
  Weights weights;
  uint32_t scales;

  __device__ void Load(const uint8_t* step, int lane) {
    weights.Load(step, lane);
    scales = LoadGroupScales<Weights>(step, lane);
  }
  __device__ float2 Scales(bool are_half) const { return GroupScales<Weights>(scales, are_half); }
};

// Adds a group's sums of 4 tokens, times their scales. Lane l has rows l / 4 and l / 4 + 8 of token
// l % 4; `input` is what it reads of its column of the instruction, 16 bytes of a plane.
template <typename Weights>
__device__ inline void AddGroup(const Weights& weights, float2 scales, const uint4& input,
                                float2& totals) {
  int sums[4] = {};  // high and low bytes of either row
#pragma unroll
  for (int instruction = 0; instruction < kGroupInstructions; ++instruction) {
    uint32_t a[4];
    weights.Expand(instruction, a);
    MultiplyBytes(a, instruction == 0 ? uint2{input.x, input.y} : uint2{input.z, input.w}, sums);
  }
  totals.x = AddGroupSum(totals.x, sums[0], sums[1], scales.x);
  totals.y = AddGroupSum(totals.y, sums[2], sums[3], scales.y);
}

// Of a token's prepared input, where 16 bytes of a plane begin: those of columns 16 * part and
// following of a step.
__device__ inline int64_t PlaneOffset(int64_t step, int plane, int part) {
  return HighByteOffset(step * kStepColumns) + plane * kPlaneBytes + part * kColumnsPerLane;
}

__device__ inline void PutGroupedOutput(const ProductArguments& arguments, int64_t token,
                                        int64_t row, float sum, float token_scale) {
  PutOutput(arguments, token, row,
            FinishSum(sum, token_scale, 1.0f, BiasOf(arguments.matrix, row)));
}

// ---- Few tokens ----

// Grid: (blocks of kRowTiles row tiles, blocks of 4 * kTokenTiles tokens). Two steps of each row
// tile are in flight beside those that are multiplied.
template <typename Weights, int kRowTiles, int kTokenTiles>
__global__ void __launch_bounds__(kThreads, 2)
    GroupedFew(const __grid_constant__ ProductArguments arguments) {
  using Lane = ScaledWeights<Weights>;
  constexpr int kUnroll = 2;
  constexpr int kRows = kRowTiles * kTileRows;
  constexpr int kTokens = kTokenTiles * kTokensPerTile;
  constexpr int kStride = kRows + 4;
  // Each thread finishes outputs of one row.
  constexpr int kTokensAtOnce = kThreads / kRows;
  __shared__ float partial[kNumChunks][kTokens][kStride];
  AllowNextKernel();

  const PackedMatrix& matrix = arguments.matrix;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int chunk = thread / 32;
  const auto num_steps = static_cast<int>(matrix.num_steps);
  const int64_t last_tile = NumRowTiles(matrix.rows) - 1;
  const int64_t first_tile = int64_t{blockIdx.x} * kRowTiles;
  const int64_t first_token = int64_t{blockIdx.y} * kTokens;

  // Tiles past the end repeat the last one, and tokens likewise; their sums are dropped.
  const uint8_t* tiles[kRowTiles];
#pragma unroll
  for (int tile = 0; tile < kRowTiles; ++tile) {
    tiles[tile] = static_cast<const uint8_t*>(matrix.tiles) +
                  min(first_tile + tile, last_tile) * num_steps * Lane::kStepBytes;
  }
  const int begin = ChunkBegin(chunk, num_steps);
  const int end = ChunkBegin(chunk + 1, num_steps);
  // Steps past the chunk's end repeat its last one, and are not multiplied.
  const auto load_weights = [&](int step, Lane(&out)[kUnroll][kRowTiles]) {
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        out[i][tile].Load(tiles[tile] + min(step + i, end - 1) * Lane::kStepBytes, lane);
      }
    }
  };
  Lane next[kUnroll][kRowTiles];
  if (begin < end) load_weights(begin, next);
  FinishIssuingLoads();
  WaitForKernelBefore();

  const uint8_t* inputs[kTokenTiles];
#pragma unroll
  for (int tile = 0; tile < kTokenTiles; ++tile) {
    const int64_t token = first_token + tile * kTokensPerTile + lane / 8;
    inputs[tile] = PreparedRow(arguments, min(token, arguments.num_tokens - 1)) +
                   PlaneOffset(0, lane / 4 % 2, lane % 4);
  }
  float2 totals[kRowTiles][kTokenTiles] = {};
  for (int step = begin; step < end; step += kUnroll) {
    uint4 input[kUnroll][kTokenTiles];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
#pragma unroll
      for (int tile = 0; tile < kTokenTiles; ++tile) {
        input[i][tile] = *reinterpret_cast<const uint4*>(inputs[tile] +
                                                         PlaneOffset(min(step + i, end - 1), 0, 0));
      }
    }
    Lane current[kUnroll][kRowTiles];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) current[i][tile] = next[i][tile];
    }
    if (step + kUnroll < end) load_weights(step + kUnroll, next);
    FinishIssuingLoads();
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if (step + i >= end) break;
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        const float2 scales = current[i][tile].Scales(matrix.has_half_scales);
#pragma unroll
        for (int token = 0; token < kTokenTiles; ++token) {
          AddGroup(current[i][tile].weights, scales, input[i][token], totals[tile][token]);
        }
      }
    }
  }

#pragma unroll
  for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
    for (int token = 0; token < kTokenTiles; ++token) {
      float* const out = &partial[chunk][token * kTokensPerTile + lane % 4][tile * kTileRows];
      out[lane / 4] = totals[tile][token].x;
      out[lane / 4 + 8] = totals[tile][token].y;
    }
  }
  __syncthreads();
  const int64_t row = first_tile * kTileRows + thread % kRows;
  if (row >= matrix.rows) return;
#pragma unroll
  for (int i = 0; i < kTokens; i += kTokensAtOnce) {
    const int block_token = i + thread / kRows;
    const int64_t token = first_token + block_token;
    if (block_token >= kTokens || token >= arguments.num_tokens) break;
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < kNumChunks; ++c) {
      sum = __fadd_rn(sum, partial[c][block_token][thread % kRows]);
    }
    PutGroupedOutput(arguments, token, row, sum, SumTotals(TrailerOf(arguments, token)).scale);
  }
}

// ---- More tokens ----

constexpr int kBlockRowTiles = 8;
constexpr int kStages = 3;
constexpr int kStageSteps = 2;                // rows have a multiple of them
constexpr int kInputBytes = 2 * kPlaneBytes;  // of a token's two steps

template <typename Weights, int kTokens>
constexpr int TiledStageBytes() {
  return kBlockRowTiles * kStageSteps * ScaledWeights<Weights>::kStepBytes + kTokens * kInputBytes;
}

// Where piece `piece` (of 16) of a token's two steps lies in a stage: the planes have their steps
// in different order, so that lanes that read a step of both do not meet in a bank.
__device__ inline int PlacePiece(int piece) { return piece ^ piece / 8 * 4; }

// Grid: (blocks of kTokens tokens, blocks of kBlockRowTiles row tiles). Blocks that follow each
// other take other tokens of the same rows, which they find in the second-level cache.
template <typename Weights, int kTokens>
__global__ void __launch_bounds__(kThreads, 2)
    GroupedTiled(const __grid_constant__ ProductArguments arguments) {
  using Lane = ScaledWeights<Weights>;
  constexpr int kWarpRowTiles = 2;
  constexpr int kWarpTokenTiles = kTokens / 2 / kTokensPerTile;
  constexpr int kTileBytes = kStageSteps * Lane::kStepBytes;
  constexpr int kWeightBytes = kBlockRowTiles * kTileBytes;
  constexpr int kStageBytes = TiledStageBytes<Weights, kTokens>();
  extern __shared__ __align__(128) uint8_t stages[];
  AllowNextKernel();

  const PackedMatrix& matrix = arguments.matrix;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp_row = thread / 32 / 2;
  const int warp_token = thread / 32 % 2;
  const auto num_steps = static_cast<int>(matrix.num_steps);
  const int num_rounds = num_steps / kStageSteps;
  const int64_t first_tile = int64_t{blockIdx.y} * kBlockRowTiles;
  const int64_t first_token = int64_t{blockIdx.x} * kTokens;

  // This thread's pieces of the first round, from the block's first tile and token on. Tiles and
  // tokens past the end repeat the last one; their sums are dropped.
  constexpr int kPiecesPerTile = kTileBytes / 16;
  constexpr int kWeightPieces = kBlockRowTiles * kPiecesPerTile;
  constexpr int kWeightPasses = (kWeightPieces + kThreads - 1) / kThreads;
  constexpr int kPiecesPerToken = kInputBytes / 16;
  constexpr int kInputPasses = kTokens * kPiecesPerToken / kThreads;
  const auto last_tile =
      static_cast<int>(min(NumRowTiles(matrix.rows) - 1 - first_tile, int64_t{kBlockRowTiles - 1}));
  const auto last_token =
      static_cast<int>(min(arguments.num_tokens - 1 - first_token, int64_t{kTokens - 1}));
  const uint8_t* const block_tiles =
      static_cast<const uint8_t*>(matrix.tiles) + first_tile * num_steps * Lane::kStepBytes;
  const uint8_t* const block_inputs = PreparedRow(arguments, first_token);
  int weight_offsets[kWeightPasses];
#pragma unroll
  for (int pass = 0; pass < kWeightPasses; ++pass) {
    const int piece = pass * kThreads + thread;
    weight_offsets[pass] = min(piece / kPiecesPerTile, last_tile) * num_steps * Lane::kStepBytes +
                           piece % kPiecesPerTile * 16;
  }
  const auto row_bytes = static_cast<int>(PreparedRowBytes(num_steps));
  int input_offsets[kInputPasses];
#pragma unroll
  for (int pass = 0; pass < kInputPasses; ++pass) {
    const int piece = pass * kThreads + thread;
    input_offsets[pass] =
        min(piece / kPiecesPerToken, last_token) * row_bytes + piece % kPiecesPerToken * 16;
  }
  const int input_place = kWeightBytes + thread / kPiecesPerToken * kInputBytes +
                          PlacePiece(thread % kPiecesPerToken) * 16;
  const auto fetch_weights = [&](int round, uint8_t* stage) {
    const uint8_t* const source = block_tiles + round * kTileBytes;
#pragma unroll
    for (int pass = 0; pass < kWeightPasses; ++pass) {
      const int piece = pass * kThreads + thread;
      if ((pass + 1) * kThreads > kWeightPieces && piece >= kWeightPieces) break;
      CopyAsync16(stage + piece * 16, source + weight_offsets[pass]);
    }
  };
  const auto fetch_inputs = [&](int round, uint8_t* stage) {
    const uint8_t* const source = block_inputs + round * kInputBytes;
#pragma unroll
    for (int pass = 0; pass < kInputPasses; ++pass) {
      CopyAsync16(stage + input_place + pass * kThreads * 16, source + input_offsets[pass]);
    }
  };

  float2 sums[kWarpRowTiles][kWarpTokenTiles] = {};  // of the chunk
  float2 totals[kWarpRowTiles][kWarpTokenTiles] = {};
  // This lane's column is part l % 4 of plane l / 4 % 2 of token l / 8, of four tokens.
  const int plane = lane / 4 % 2;
  const int first_input = kWeightBytes + warp_token * (kTokens / 2) * kInputBytes +
                          lane / 8 * kInputBytes + PlacePiece(plane * 8 + lane % 4) * 16;
  static_assert(kWeightBytes % kPlaneBytes == 0,
                "a step's place in its plane is a bit of first_input");
  const int first_weight = warp_row * kWarpRowTiles * kTileBytes;
  const auto multiply = [&](const uint8_t* stage, int step) {
    Lane weights[kWarpRowTiles];
    float2 scales[kWarpRowTiles];
#pragma unroll
    for (int row = 0; row < kWarpRowTiles; ++row) {
      weights[row].Load(stage + first_weight + row * kTileBytes + step * Lane::kStepBytes, lane);
      scales[row] = weights[row].Scales(matrix.has_half_scales);
    }
    const uint8_t* const inputs = stage + (first_input ^ step * 64);
#pragma unroll
    for (int token = 0; token < kWarpTokenTiles; ++token) {
      const uint4 input =
          *reinterpret_cast<const uint4*>(inputs + token * kTokensPerTile * kInputBytes);
#pragma unroll
      for (int row = 0; row < kWarpRowTiles; ++row) {
        AddGroup(weights[row].weights, scales[row], input, sums[row][token]);
      }
    }
  };
  const auto finish_chunk = [&] {
#pragma unroll
    for (int row = 0; row < kWarpRowTiles; ++row) {
#pragma unroll
      for (int token = 0; token < kWarpTokenTiles; ++token) {
        float2& total = totals[row][token];
        total = {__fadd_rn(total.x, sums[row][token].x), __fadd_rn(total.y, sums[row][token].y)};
        sums[row][token] = {};
      }
    }
  };

#pragma unroll
  for (int round = 0; round < kStages - 1; ++round) {
    if (round < num_rounds) fetch_weights(round, stages + round * kStageBytes);
  }
  WaitForKernelBefore();
  // The first group of copies is that of all these weights, too.
#pragma unroll
  for (int round = 0; round < kStages - 1; ++round) {
    if (round < num_rounds) fetch_inputs(round, stages + round * kStageBytes);
    CommitCopies();
  }
  int chunk = 0;
  int chunk_end = ChunkBegin(1, num_steps);
  int slot = 0;
#pragma unroll 1
  for (int round = 0; round < num_rounds; ++round) {
    WaitForCopies<kStages - 2>();
    __syncthreads();
    // Into the stage that all warps left before the barrier.
    if (const int next = round + kStages - 1; next < num_rounds) {
      uint8_t* const stage = stages + (slot == 0 ? kStages - 1 : slot - 1) * kStageBytes;
      fetch_weights(next, stage);
      fetch_inputs(next, stage);
    }
    CommitCopies();
    const uint8_t* const stage = stages + slot * kStageBytes;
#pragma unroll
    for (int step = 0; step < kStageSteps; ++step) {
      multiply(stage, step);
      if (round * kStageSteps + step + 1 < chunk_end) continue;
      finish_chunk();
      // Chunks without a step end with the one before.
      while (chunk < kNumChunks - 1 && chunk_end <= round * kStageSteps + step + 1) {
        ++chunk;
        chunk_end = ChunkBegin(chunk + 1, num_steps);
      }
    }
    slot = slot == kStages - 1 ? 0 : slot + 1;
  }

  const int64_t first_row = (first_tile + warp_row * kWarpRowTiles) * kTileRows + lane / 4;
#pragma unroll
  for (int tile = 0; tile < kWarpTokenTiles; ++tile) {
    const int64_t token =
        first_token + (warp_token * kWarpTokenTiles + tile) * kTokensPerTile + lane % 4;
    if (token >= arguments.num_tokens) continue;
    const float token_scale = SumTotals(TrailerOf(arguments, token)).scale;
#pragma unroll
    for (int row_tile = 0; row_tile < kWarpRowTiles; ++row_tile) {
      const int64_t row = first_row + row_tile * kTileRows;
      const float2 total = totals[row_tile][tile];
      if (row < matrix.rows) PutGroupedOutput(arguments, token, row, total.x, token_scale);
      if (row + 8 < matrix.rows) PutGroupedOutput(arguments, token, row + 8, total.y, token_scale);
    }
  }
}

// ---- Which of them ----

template <typename Weights, int kRowTiles, int kTokenTiles>
cudaError_t LaunchGroupedFew(const ProductArguments& arguments, cudaStream_t stream) {
  constexpr int kTokens = kTokenTiles * kTokensPerTile;
  const dim3 grid(
      static_cast<unsigned>((NumRowTiles(arguments.matrix.rows) + kRowTiles - 1) / kRowTiles),
      static_cast<unsigned>((arguments.num_tokens + kTokens - 1) / kTokens));
  return LaunchKernel(GroupedFew<Weights, kRowTiles, kTokenTiles>, grid, kThreads,
                      /*shared_bytes=*/0, stream, arguments);
}

template <typename Weights, int kTokens>
cudaError_t LaunchGroupedTiled(const ProductArguments& arguments, cudaStream_t stream) {
  constexpr int kSharedBytes = kStages * TiledStageBytes<Weights, kTokens>();
  const cudaError_t error = cudaFuncSetAttribute(
      GroupedTiled<Weights, kTokens>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  constexpr int kRows = kBlockRowTiles * kTileRows;
  const dim3 grid(static_cast<unsigned>((arguments.num_tokens + kTokens - 1) / kTokens),
                  static_cast<unsigned>((arguments.matrix.rows + kRows - 1) / kRows));
  return LaunchKernel(GroupedTiled<Weights, kTokens>, grid, kThreads, kSharedBytes, stream,
                      arguments);
}

template <typename Weights>
cudaError_t LaunchGrouped(const ProductArguments& arguments, cudaStream_t stream) {
  if (arguments.num_tokens <= 4) return LaunchGroupedFew<Weights, 2, 1>(arguments, stream);
  if (arguments.num_tokens <= 8) return LaunchGroupedFew<Weights, 2, 2>(arguments, stream);
  if (HasGroupedProductHopper()) {
    return LaunchGroupedProductHopper(std::is_same_v<Weights, Int4Weights>, arguments, stream);
  }
  if (arguments.num_tokens <= 16) return LaunchGroupedFew<Weights, 1, 4>(arguments, stream);
  if (arguments.num_tokens <= 32) return LaunchGroupedTiled<Weights, 32>(arguments, stream);
  return LaunchGroupedTiled<Weights, 64>(arguments, stream);
}

constexpr int kPackThreads = 256;

// A block packs a row, those past the last included.
__global__ void PackGrouped(bool is_int4, const uint8_t* values, int64_t cols,
                            const uint16_t* scales, int64_t first_row, int64_t num_rows,
                            int64_t num_steps, uint8_t* tiles) {
  const int64_t source_row = blockIdx.x;
  const int64_t row = first_row + source_row;
  const bool is_row = source_row < num_rows;
  const int64_t num_groups = NumSteps(cols);
  for (int64_t step = threadIdx.x; step < num_steps; step += kPackThreads) {
    *reinterpret_cast<uint16_t*>(tiles + GroupScaleOffset(is_int4, row, step, num_steps)) =
        is_row && step < num_groups ? scales[source_row * num_groups + step] : uint16_t{0};
  }
  const int64_t padded = num_steps * kStepColumns;
  if (!is_int4) {
    for (int64_t column = threadIdx.x; column < padded; column += kPackThreads) {
      tiles[Int8Offset(row, column, num_steps)] =
          is_row && column < cols ? values[source_row * cols + column] : uint8_t{0};
    }
    return;
  }
  const int64_t row_bytes = (cols + 1) / 2;
  const auto nibble = [&](int64_t column) {
    const int byte = is_row && column < cols ? values[source_row * row_bytes + column / 2] : 0;
    return byte >> (column % 2 * 4) & 15;
  };
  for (int64_t i = threadIdx.x; i < padded / 2; i += kPackThreads) {
    const int64_t column = i / 4 * 8 + i % 4;  // in the upper half
    tiles[Int4Offset(row, column, num_steps)] =
        static_cast<uint8_t>(nibble(column) << 4 | nibble(column + 4));
  }
}

}  // namespace

cudaError_t LaunchInt8Product(const ProductArguments& arguments, cudaStream_t stream) {
  return LaunchGrouped<Int8Weights>(arguments, stream);
}

cudaError_t LaunchInt4Product(const ProductArguments& arguments, cudaStream_t stream) {
  return LaunchGrouped<Int4Weights>(arguments, stream);
}

cudaError_t LaunchPackGrouped(bool is_int4, const uint8_t* values, int64_t cols,
                              const uint16_t* scales, int64_t first_row, int64_t num_rows,
                              int64_t num_steps, uint8_t* tiles, cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(NumRowTiles(num_rows) * kTileRows);
  PackGrouped<<<rows, kPackThreads, 0, stream>>>(is_int4, values, cols, scales, first_row, num_rows,
                                                 num_steps, tiles);
  return cudaGetLastError();
}

}  // namespace ultrasketch::cuda
