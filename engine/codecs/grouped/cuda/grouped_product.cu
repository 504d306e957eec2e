// Products with grouped integers: an output head's, with many rows and any number of tokens.
//
// A warp takes 16 rows and up to 64 tokens and goes through all columns. Integers become binary16
// exactly; a group's sum is scaled in float, as the format defines it. Bound, up to 32 tokens: the
// table's bytes, of which each warp has four groups in flight; beyond, mma.sync. Blocks that follow
// each other take other tokens of the same rows, which they find in the second-level cache.
#include <cuda_bf16.h>

#include "engine/codecs/cuda/product.cuh"
#include "engine/codecs/grouped/cuda/grouped_product.h"

namespace ultrasketch::cuda {
namespace {

constexpr int kWarps = 8;

// Two binary16 numbers 1024 + n made of their bits, less `offset`, both halves alike.
__device__ inline uint32_t Subtract(uint32_t pair, float offset) {
  const __half2 result =
      __hsub2(*reinterpret_cast<const __half2*>(&pair), __float2half2_rn(offset));
  return *reinterpret_cast<const uint32_t*>(&result);
}

constexpr uint32_t k1024 = 0x64006400u;

struct Int8Weights {
  static constexpr int kStepBytes = kInt8StepBytes;
  static constexpr int kUnroll = 4;

  struct Lane {
    uint4 rows[2];
  };
  static __device__ Lane Load(const uint8_t* step, int lane) {
    const auto* pieces = reinterpret_cast<const uint4*>(step);
    return {{__ldcg(pieces + lane), __ldcg(pieces + 32 + lane)}};
  }
  static __device__ void Expand(const Lane& lane, int instruction, uint32_t (&a)[4]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const uint4& words = lane.rows[row];
      const uint32_t word = instruction == 0   ? words.x
                            : instruction == 1 ? words.y
                            : instruction == 2 ? words.z
                                               : words.w;
      // To n + 128, as the lower byte of 1024 + n + 128.
      const uint32_t shifted = word ^ 0x80808080u;
      a[row] = Subtract(__byte_perm(shifted, k1024, 0x5150), 1024.0f + 128.0f);
      a[row + 2] = Subtract(__byte_perm(shifted, k1024, 0x5352), 1024.0f + 128.0f);
    }
  }
};

struct Int4Weights {
  static constexpr int kStepBytes = kInt4StepBytes;
  static constexpr int kUnroll = 8;

  struct Lane {
    uint4 words;
  };
  static __device__ Lane Load(const uint8_t* step, int lane) {
    return {__ldcg(reinterpret_cast<const uint4*>(step) + lane)};
  }
  static __device__ void Expand(const Lane& lane, int instruction, uint32_t (&a)[4]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const uint32_t low = row == 0 ? lane.words.x : lane.words.z;
      const uint32_t high = row == 0 ? lane.words.y : lane.words.w;
      const uint32_t word = (instruction < 2 ? low : high) >> (instruction % 2 * 8);
      a[row] = Subtract((word & 0x000f000fu) | k1024, 1024.0f + 8.0f);
      a[row + 2] = Subtract((word >> 4 & 0x000f000fu) | k1024, 1024.0f + 8.0f);
    }
  }
};

__device__ inline float GroupScale(uint16_t bits, bool is_half) {
  if (!is_half) return __uint_as_float(uint32_t{bits} << 16);
  return __half2float(__ushort_as_half(bits));
}

template <typename Weights, int kTokenTiles>
__global__ void __launch_bounds__(kWarps * 32)
    GroupedProduct(const __grid_constant__ ProductArguments arguments) {
  AllowNextKernel();
  const PackedMatrix& matrix = arguments.matrix;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t tile = int64_t{blockIdx.y} * kWarps + threadIdx.x / 32;
  const int64_t first_token = int64_t{blockIdx.x} * kTokenTiles * 8;
  const auto num_steps = static_cast<int>(matrix.num_steps);
  const bool is_tile = tile < NumRowTiles(matrix.rows);
  const uint8_t* weights =
      static_cast<const uint8_t*>(matrix.tiles) + tile * num_steps * Weights::kStepBytes;
  const uint16_t* scales = matrix.group_scales.values + tile * num_steps * kTileRows + lane / 4;

  constexpr int kUnroll = Weights::kUnroll;
  typename Weights::Lane next[kUnroll];
  // Steps past the end repeat the last one, and are not multiplied.
  const auto load = [&](int step) {
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      next[i] = Weights::Load(weights + min(step + i, num_steps - 1) * Weights::kStepBytes, lane);
    }
  };
  if (is_tile) load(0);
  FinishIssuingLoads();
  WaitForKernelBefore();
  if (!is_tile) return;

  const uint8_t* inputs[kTokenTiles];
#pragma unroll
  for (int token = 0; token < kTokenTiles; ++token) {
    const int64_t row = min(first_token + token * 8 + lane / 4, arguments.num_tokens - 1);
    inputs[token] = PreparedRow(arguments, row) + lane % 4 * 32;
  }
  float totals[kTokenTiles][4] = {};
  for (int step = 0; step < num_steps; step += kUnroll) {
    typename Weights::Lane current[kUnroll];
    float row_scales[kUnroll][2];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      current[i] = next[i];
      const uint16_t* group = scales + min(step + i, num_steps - 1) * kTileRows;
      row_scales[i][0] = GroupScale(group[0], matrix.group_scales.is_half);
      row_scales[i][1] = GroupScale(group[8], matrix.group_scales.is_half);
    }
    if (step + kUnroll < num_steps) load(step + kUnroll);
    FinishIssuingLoads();
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if (step + i >= num_steps) break;
      uint32_t a[kInstructionsPerStep][4];
#pragma unroll
      for (int instruction = 0; instruction < kInstructionsPerStep; ++instruction) {
        Weights::Expand(current[i], instruction, a[instruction]);
      }
#pragma unroll
      for (int token = 0; token < kTokenTiles; ++token) {
        const auto* source =
            reinterpret_cast<const uint4*>(inputs[token] + int64_t{step + i} * 128);
        const LaneInput input = {source[0], source[1]};
        float sums[4] = {};
#pragma unroll
        for (int instruction = 0; instruction < kInstructionsPerStep; ++instruction) {
          MultiplyAccumulate(a[instruction], InstructionInput(input, instruction), sums);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          totals[token][j] = __fmaf_rn(sums[j], row_scales[i][j / 2], totals[token][j]);
        }
      }
    }
  }

#pragma unroll
  for (int token_tile = 0; token_tile < kTokenTiles; ++token_tile) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t token = first_token + token_tile * 8 + lane % 4 * 2 + j % 2;
      const int64_t row = tile * kTileRows + lane / 4 + j / 2 * 8;
      if (token >= arguments.num_tokens || row >= matrix.rows) continue;
      const float value =
          FinishSum(totals[token_tile][j], TokenScale(arguments, token), 1.0f, BiasOf(matrix, row));
      PutOutput(arguments, token, row, value);
    }
  }
}

template <typename Weights, int kTokenTiles>
cudaError_t Launch(const ProductArguments& arguments, cudaStream_t stream) {
  const dim3 grid(
      static_cast<unsigned>((arguments.num_tokens + kTokenTiles * 8 - 1) / (kTokenTiles * 8)),
      static_cast<unsigned>((NumRowTiles(arguments.matrix.rows) + kWarps - 1) / kWarps));
  return LaunchKernel(GroupedProduct<Weights, kTokenTiles>, grid, kWarps * 32,
                      /*shared_bytes=*/0, stream, arguments);
}

template <typename Weights>
cudaError_t LaunchForTokens(const ProductArguments& arguments, cudaStream_t stream) {
  if (arguments.num_tokens <= 8) return Launch<Weights, 1>(arguments, stream);
  if (arguments.num_tokens <= 16) return Launch<Weights, 2>(arguments, stream);
  if (arguments.num_tokens <= 32) return Launch<Weights, 4>(arguments, stream);
  return Launch<Weights, 8>(arguments, stream);
}

constexpr int kPackThreads = 256;

// A block packs a row, those past the last included.
__global__ void PackGrouped(bool is_int4, const uint8_t* values, int64_t cols,
                            const uint16_t* scales, int64_t first_row, int64_t num_rows,
                            int64_t num_steps, uint8_t* tiles, uint16_t* packed_scales) {
  const int64_t source_row = blockIdx.x;
  const int64_t row = first_row + source_row;
  const bool is_row = source_row < num_rows;
  for (int64_t step = threadIdx.x; step < num_steps; step += kPackThreads) {
    packed_scales[GroupScaleOffset(row, step, num_steps)] =
        is_row ? scales[source_row * num_steps + step] : uint16_t{0};
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
    return (byte >> (column % 2 * 4) & 15) ^ 8;
  };
  // A byte has a column in its lower half and the one two after in its upper half.
  for (int64_t i = threadIdx.x; i < padded / 2; i += kPackThreads) {
    const int64_t column = i / 2 * 4 + i % 2;
    tiles[Int4Offset(row, column, num_steps)] =
        static_cast<uint8_t>(nibble(column) | nibble(column + 2) << 4);
  }
}

}  // namespace

cudaError_t LaunchInt8Product(const ProductArguments& arguments, cudaStream_t stream) {
  return LaunchForTokens<Int8Weights>(arguments, stream);
}

cudaError_t LaunchInt4Product(const ProductArguments& arguments, cudaStream_t stream) {
  return LaunchForTokens<Int4Weights>(arguments, stream);
}

cudaError_t LaunchPackGrouped(bool is_int4, const uint8_t* values, int64_t cols,
                              const uint16_t* scales, int64_t first_row, int64_t num_rows,
                              int64_t num_steps, uint8_t* tiles, uint16_t* packed_scales,
                              cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(NumRowTiles(num_rows) * kTileRows);
  PackGrouped<<<rows, kPackThreads, 0, stream>>>(is_int4, values, cols, scales, first_row, num_rows,
                                                 num_steps, tiles, packed_scales);
  return cudaGetLastError();
}

}  // namespace ultrasketch::cuda
