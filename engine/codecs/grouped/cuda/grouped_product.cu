// Products with group-quantized integers: an output head's, with many rows and any number of
// tokens; with more than 8 and wgmma, see grouped_product_hopper.cu.
//
// Few tokens (GroupedSkinny), bound by reading weights: a block takes some M tiles, each of its 8
// warps a K split of their columns, as SkinnyProduct does (product.cuh). An int8 weight is an
// operand as it lies, so that an M tile's K tile takes some 30 instructions, 4 tokens, where
// expanding it to fp16 took 110.
//
// More tokens (GroupedTiled):
//
//                 kTokens tokens
//   128 rows  [ 4 x 2 warps of 32 rows x kTokens / 2 ]   both operands through shared memory, three
//                                                        stages of two K tiles each
//
// Bound: sums of bytes cost the tensor cores what a product of fp16 would, hi and lo bytes of input
// at twice the rate; scaling a group's sums, six instructions for two, about as much.
#include <type_traits>

#include "engine/codecs/cuda/byte_product.cuh"
#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/cuda/ptx/mma.cuh"
#include "engine/codecs/grouped/cuda/grouped_product.h"
#include "engine/codecs/grouped/cuda/grouped_product_hopper.h"
#include "engine/codecs/grouped/cuda/grouped_weights.cuh"

namespace ultrasketch::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTokensPerTile = 4;  // an instruction's eight columns are their hi and lo bytes

// A K tile of an M tile with the scales of the lane's rows.
template <typename Weights>
struct ScaledWeights {
  static constexpr int kKTileBytes = Weights::kIntegerBytes + kKTileScaleBytes;
  Weights weights;
  uint32_t scales;

  __device__ void Load(const uint8_t* k_tile, int lane) {
    weights.Load(k_tile, lane);
    scales = LoadGroupScales<Weights>(k_tile, lane);
  }
  __device__ float2 Scales(bool are_half) const { return GroupScales<Weights>(scales, are_half); }
};

// Adds a group's sums of 4 tokens, times their scales. Lane l has rows l / 4 and l / 4 + 8 of token
// l % 4; `input` is what it reads of its column of the instruction, 16 high or low bytes.
template <typename Weights>
__device__ inline void AddGroup(const Weights& weights, float2 scales, const uint4& input,
                                float2& totals) {
  int accumulators[4] = {};  // high and low bytes of either row
#pragma unroll
  for (int instruction = 0; instruction < kGroupInstructions; ++instruction) {
    uint32_t a[4];
    weights.Expand(instruction, a);
    MmaS8(a, instruction == 0 ? uint2{input.x, input.y} : uint2{input.z, input.w}, accumulators);
  }
  totals.x = AddGroupSum(totals.x, accumulators[0], accumulators[1], scales.x);
  totals.y = AddGroupSum(totals.y, accumulators[2], accumulators[3], scales.y);
}

// Where 16 bytes of a token's packed input begin, all high or all low ones: those of columns 16 *
// part and following of a K tile.
__device__ inline int64_t PlaneOffset(int64_t k_tile, int plane, int part) {
  return HighByteOffset(k_tile * kKTileColumns) + plane * kHiLoBytes + part * kColumnsPerLane;
}

__device__ inline void PutGroupedOutput(const ProductArguments& arguments, int64_t token,
                                        int64_t row, float sum, float token_scale) {
  PutOutput(arguments, token, row,
            FinishSum(sum, token_scale, 1.0f, BiasOf(arguments.matrix, row)));
}

// ---- Few tokens ----

// Grid: (blocks of kMTiles M tiles, blocks of 4 * kTokenTiles tokens). Two K tiles of each M tile
// are in flight beside those that are multiplied.
template <typename Weights, int kMTiles, int kTokenTiles>
__global__ void __launch_bounds__(kThreads, 2)
    GroupedSkinny(const __grid_constant__ ProductArguments arguments) {
  using Lane = ScaledWeights<Weights>;
  constexpr int kUnroll = 2;
  constexpr int kRows = kMTiles * kMTileRows;
  constexpr int kTokens = kTokenTiles * kTokensPerTile;
  constexpr int kStride = kRows + 4;
  // Each thread finishes outputs of one row.
  constexpr int kTokensAtOnce = kThreads / kRows;
  __shared__ float partial[kNumKSplits][kTokens][kStride];
  LaunchDependents();

  const PackedMatrix& matrix = arguments.matrix;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int k_split = thread / 32;
  const auto num_k_tiles = static_cast<int>(matrix.num_k_tiles);
  const int64_t last_tile = NumMTiles(matrix.rows) - 1;
  const int64_t first_tile = int64_t{blockIdx.x} * kMTiles;
  const int64_t first_token = int64_t{blockIdx.y} * kTokens;

  // Tiles past the end repeat the last one, and tokens likewise; their sums are dropped.
  const uint8_t* tiles[kMTiles];
#pragma unroll
  for (int tile = 0; tile < kMTiles; ++tile) {
    tiles[tile] = static_cast<const uint8_t*>(matrix.tiles) +
                  min(first_tile + tile, last_tile) * num_k_tiles * Lane::kKTileBytes;
  }
  const int begin = KSplitBegin(k_split, num_k_tiles);
  const int end = KSplitBegin(k_split + 1, num_k_tiles);
  // K tiles past the K split's end repeat its last one, and are not multiplied.
  const auto load_weights = [&](int k_tile, Lane(&out)[kUnroll][kMTiles]) {
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
#pragma unroll
      for (int tile = 0; tile < kMTiles; ++tile) {
        out[i][tile].Load(tiles[tile] + min(k_tile + i, end - 1) * Lane::kKTileBytes, lane);
      }
    }
  };
  Lane next[kUnroll][kMTiles];
  if (begin < end) load_weights(begin, next);
  CompilerBarrier();
  WaitForGridDependency();

  const uint8_t* inputs[kTokenTiles];
#pragma unroll
  for (int tile = 0; tile < kTokenTiles; ++tile) {
    const int64_t token = first_token + tile * kTokensPerTile + lane / 8;
    inputs[tile] = PackedInputRow(arguments, min(token, arguments.num_tokens - 1)) +
                   PlaneOffset(0, lane / 4 % 2, lane % 4);
  }
  float2 totals[kMTiles][kTokenTiles] = {};
  for (int k_tile = begin; k_tile < end; k_tile += kUnroll) {
    uint4 input[kUnroll][kTokenTiles];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
#pragma unroll
      for (int tile = 0; tile < kTokenTiles; ++tile) {
        input[i][tile] = *reinterpret_cast<const uint4*>(
            inputs[tile] + PlaneOffset(min(k_tile + i, end - 1), 0, 0));
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
      for (int tile = 0; tile < kMTiles; ++tile) {
        const float2 scales = current[i][tile].Scales(matrix.has_half_scales);
#pragma unroll
        for (int token = 0; token < kTokenTiles; ++token) {
          AddGroup(current[i][tile].weights, scales, input[i][token], totals[tile][token]);
        }
      }
    }
  }

#pragma unroll
  for (int tile = 0; tile < kMTiles; ++tile) {
#pragma unroll
    for (int token = 0; token < kTokenTiles; ++token) {
      float* const out = &partial[k_split][token * kTokensPerTile + lane % 4][tile * kMTileRows];
      out[lane / 4] = totals[tile][token].x;
      out[lane / 4 + 8] = totals[tile][token].y;
    }
  }
  __syncthreads();
  const int64_t row = first_tile * kMTileRows + thread % kRows;
  if (row >= matrix.rows) return;
#pragma unroll
  for (int i = 0; i < kTokens; i += kTokensAtOnce) {
    const int block_token = i + thread / kRows;
    const int64_t token = first_token + block_token;
    if (block_token >= kTokens || token >= arguments.num_tokens) break;
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < kNumKSplits; ++c) {
      sum = __fadd_rn(sum, partial[c][block_token][thread % kRows]);
    }
    PutGroupedOutput(arguments, token, row, sum, SumTotals(TrailerOf(arguments, token)).scale);
  }
}

// ---- More tokens ----

constexpr int kBlockMTiles = 8;
constexpr int kStages = 3;
constexpr int kStageKTiles = 2;              // rows have a multiple of them
constexpr int kInputBytes = 2 * kHiLoBytes;  // of a token's two K tiles

template <typename Weights, int kTokens>
constexpr int TiledStageBytes() {
  return kBlockMTiles * kStageKTiles * ScaledWeights<Weights>::kKTileBytes + kTokens * kInputBytes;
}

// Where piece `piece` (of 16) of a token's two K tiles lies in a stage: hi and lo bytes have their
// K tiles in different order, so that lanes that read a K tile of both do not meet in a bank.
__device__ inline int PlacePiece(int piece) { return piece ^ piece / 8 * 4; }

// Grid: (blocks of kTokens tokens, blocks of kBlockMTiles M tiles). Blocks that follow each other
// take other tokens of the same rows, which they find in L2.
template <typename Weights, int kTokens>
__global__ void __launch_bounds__(kThreads, 2)
    GroupedTiled(const __grid_constant__ ProductArguments arguments) {
  using Lane = ScaledWeights<Weights>;
  constexpr int kWarpMTiles = 2;
  constexpr int kWarpTokenTiles = kTokens / 2 / kTokensPerTile;
  constexpr int kTileBytes = kStageKTiles * Lane::kKTileBytes;
  constexpr int kWeightBytes = kBlockMTiles * kTileBytes;
  constexpr int kStageBytes = TiledStageBytes<Weights, kTokens>();
  extern __shared__ __align__(128) uint8_t stages[];
  LaunchDependents();

  const PackedMatrix& matrix = arguments.matrix;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp_row = thread / 32 / 2;
  const int warp_token = thread / 32 % 2;
  const auto num_k_tiles = static_cast<int>(matrix.num_k_tiles);
  const int num_rounds = num_k_tiles / kStageKTiles;
  const int64_t first_tile = int64_t{blockIdx.y} * kBlockMTiles;
  const int64_t first_token = int64_t{blockIdx.x} * kTokens;

  // This thread's pieces of the first round, from the block's first tile and token on. Tiles and
  // tokens past the end repeat the last one; their sums are dropped.
  constexpr int kPiecesPerTile = kTileBytes / 16;
  constexpr int kWeightPieces = kBlockMTiles * kPiecesPerTile;
  constexpr int kWeightPasses = (kWeightPieces + kThreads - 1) / kThreads;
  constexpr int kPiecesPerToken = kInputBytes / 16;
  constexpr int kInputPasses = kTokens * kPiecesPerToken / kThreads;
  const auto last_tile =
      static_cast<int>(min(NumMTiles(matrix.rows) - 1 - first_tile, int64_t{kBlockMTiles - 1}));
  const auto last_token =
      static_cast<int>(min(arguments.num_tokens - 1 - first_token, int64_t{kTokens - 1}));
  const uint8_t* const block_tiles =
      static_cast<const uint8_t*>(matrix.tiles) + first_tile * num_k_tiles * Lane::kKTileBytes;
  const uint8_t* const block_inputs = PackedInputRow(arguments, first_token);
  int weight_offsets[kWeightPasses];
#pragma unroll
  for (int pass = 0; pass < kWeightPasses; ++pass) {
    const int piece = pass * kThreads + thread;
    weight_offsets[pass] =
        min(piece / kPiecesPerTile, last_tile) * num_k_tiles * Lane::kKTileBytes +
        piece % kPiecesPerTile * 16;
  }
  const auto row_bytes = static_cast<int>(PackedInputBytes(num_k_tiles));
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

  float2 accumulators[kWarpMTiles][kWarpTokenTiles] = {};  // of the K split
  float2 totals[kWarpMTiles][kWarpTokenTiles] = {};
  // This lane's column is part l % 4 of the high or low bytes (l / 4 % 2) of token l / 8, of four.
  const int plane = lane / 4 % 2;
  const int first_input = kWeightBytes + warp_token * (kTokens / 2) * kInputBytes +
                          lane / 8 * kInputBytes + PlacePiece(plane * 8 + lane % 4) * 16;
  static_assert(kWeightBytes % kHiLoBytes == 0,
                "a step's place in its plane is a bit of first_input");
  const int first_weight = warp_row * kWarpMTiles * kTileBytes;
  const auto multiply = [&](const uint8_t* stage, int k_tile) {
    Lane weights[kWarpMTiles];
    float2 scales[kWarpMTiles];
#pragma unroll
    for (int row = 0; row < kWarpMTiles; ++row) {
      weights[row].Load(stage + first_weight + row * kTileBytes + k_tile * Lane::kKTileBytes, lane);
      scales[row] = weights[row].Scales(matrix.has_half_scales);
    }
    const uint8_t* const inputs = stage + (first_input ^ k_tile * 64);
#pragma unroll
    for (int token = 0; token < kWarpTokenTiles; ++token) {
      const uint4 input =
          *reinterpret_cast<const uint4*>(inputs + token * kTokensPerTile * kInputBytes);
#pragma unroll
      for (int row = 0; row < kWarpMTiles; ++row) {
        AddGroup(weights[row].weights, scales[row], input, accumulators[row][token]);
      }
    }
  };
  const auto finish_k_split = [&] {
#pragma unroll
    for (int row = 0; row < kWarpMTiles; ++row) {
#pragma unroll
      for (int token = 0; token < kWarpTokenTiles; ++token) {
        float2& total = totals[row][token];
        total = {__fadd_rn(total.x, accumulators[row][token].x),
                 __fadd_rn(total.y, accumulators[row][token].y)};
        accumulators[row][token] = {};
      }
    }
  };

#pragma unroll
  for (int round = 0; round < kStages - 1; ++round) {
    if (round < num_rounds) fetch_weights(round, stages + round * kStageBytes);
  }
  WaitForGridDependency();
  // The first group of copies is that of all these weights, too.
#pragma unroll
  for (int round = 0; round < kStages - 1; ++round) {
    if (round < num_rounds) fetch_inputs(round, stages + round * kStageBytes);
    CommitCopies();
  }
  int k_split = 0;
  int k_split_end = KSplitBegin(1, num_k_tiles);
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
    for (int k_tile = 0; k_tile < kStageKTiles; ++k_tile) {
      multiply(stage, k_tile);
      if (round * kStageKTiles + k_tile + 1 < k_split_end) continue;
      finish_k_split();
      // K splits without a K tile end with the one before.
      while (k_split < kNumKSplits - 1 && k_split_end <= round * kStageKTiles + k_tile + 1) {
        ++k_split;
        k_split_end = KSplitBegin(k_split + 1, num_k_tiles);
      }
    }
    slot = slot == kStages - 1 ? 0 : slot + 1;
  }

  const int64_t first_row = (first_tile + warp_row * kWarpMTiles) * kMTileRows + lane / 4;
#pragma unroll
  for (int tile = 0; tile < kWarpTokenTiles; ++tile) {
    const int64_t token =
        first_token + (warp_token * kWarpTokenTiles + tile) * kTokensPerTile + lane % 4;
    if (token >= arguments.num_tokens) continue;
    const float token_scale = SumTotals(TrailerOf(arguments, token)).scale;
#pragma unroll
    for (int m_tile = 0; m_tile < kWarpMTiles; ++m_tile) {
      const int64_t row = first_row + m_tile * kMTileRows;
      const float2 total = totals[m_tile][tile];
      if (row < matrix.rows) PutGroupedOutput(arguments, token, row, total.x, token_scale);
      if (row + 8 < matrix.rows) PutGroupedOutput(arguments, token, row + 8, total.y, token_scale);
    }
  }
}

// ---- Which of them ----

template <typename Weights, int kMTiles, int kTokenTiles>
cudaError_t LaunchGroupedFew(const ProductArguments& arguments, cudaStream_t stream) {
  constexpr int kTokens = kTokenTiles * kTokensPerTile;
  const dim3 grid(static_cast<unsigned>((NumMTiles(arguments.matrix.rows) + kMTiles - 1) / kMTiles),
                  static_cast<unsigned>((arguments.num_tokens + kTokens - 1) / kTokens));
  return LaunchKernel(GroupedSkinny<Weights, kMTiles, kTokenTiles>, grid, kThreads,
                      /*shared_bytes=*/0, stream, arguments);
}

template <typename Weights, int kTokens>
cudaError_t LaunchGroupedTiled(const ProductArguments& arguments, cudaStream_t stream) {
  constexpr int kSharedBytes = kStages * TiledStageBytes<Weights, kTokens>();
  const cudaError_t error = cudaFuncSetAttribute(
      GroupedTiled<Weights, kTokens>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  constexpr int kRows = kBlockMTiles * kMTileRows;
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
                            int64_t num_k_tiles, uint8_t* tiles) {
  const int64_t source_row = blockIdx.x;
  const int64_t row = first_row + source_row;
  const bool is_row = source_row < num_rows;
  const int64_t num_groups = NumKTiles(cols);
  for (int64_t k_tile = threadIdx.x; k_tile < num_k_tiles; k_tile += kPackThreads) {
    *reinterpret_cast<uint16_t*>(tiles + GroupScaleOffset(is_int4, row, k_tile, num_k_tiles)) =
        is_row && k_tile < num_groups ? scales[source_row * num_groups + k_tile] : uint16_t{0};
  }
  const int64_t padded = num_k_tiles * kKTileColumns;
  if (!is_int4) {
    for (int64_t column = threadIdx.x; column < padded; column += kPackThreads) {
      tiles[Int8Offset(row, column, num_k_tiles)] =
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
    tiles[Int4Offset(row, column, num_k_tiles)] =
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
                              int64_t num_k_tiles, uint8_t* tiles, cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(NumMTiles(num_rows) * kMTileRows);
  PackGrouped<<<rows, kPackThreads, 0, stream>>>(is_int4, values, cols, scales, first_row, num_rows,
                                                 num_k_tiles, tiles);
  return cudaGetLastError();
}

}  // namespace ultrasketch::cuda
