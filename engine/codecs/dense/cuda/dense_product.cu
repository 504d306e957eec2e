// Uncompressed weights as fp16: what a lane reads is what the tensor cores take.
#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/cuda/product.cuh"
#include "engine/codecs/dense/cuda/dense_product.h"
#include "engine/codecs/dense/cuda/dense_product_hopper.h"

namespace ultrasketch::cuda {
namespace {

struct DenseWeights {
  static constexpr int kKTileBytes = kDenseKTileBytes;
  static constexpr int kUnroll = 2;

  struct Lane {
    uint4 pieces[4];  // of rows l / 4 and l / 4 + 8, two each
  };

  static __device__ Lane Load(const uint8_t* k_tile, int lane) {
    Lane result;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      result.pieces[i] = reinterpret_cast<const uint4*>(k_tile)[i * 32 + SwizzledPiece(lane)];
    }
    return result;
  }

  static __device__ void Expand(const Lane& weights, int instruction, uint32_t (&a)[4]) {
    const uint4 top = weights.pieces[instruction / 2];
    const uint4 bottom = weights.pieces[2 + instruction / 2];
    const bool is_first = instruction % 2 == 0;
    a[0] = is_first ? top.x : top.z;
    a[1] = is_first ? bottom.x : bottom.z;
    a[2] = is_first ? top.y : top.w;
    a[3] = is_first ? bottom.y : bottom.w;
  }
};

constexpr int kPackThreads = 256;

// One block a row of the tiles, those past the last row included.
__global__ void PackDense(const float* values, int64_t cols, int64_t first_row, int64_t num_rows,
                          int64_t num_k_tiles, __half* tiles, float* row_scales) {
  const int64_t row = blockIdx.x;
  const float* source = values + row * cols;
  float maximum = 0.0f;
  if (row < num_rows) {
    for (int64_t column = threadIdx.x; column < cols; column += kPackThreads) {
      maximum = fmaxf(maximum, fabsf(source[column]));
    }
  }
  maximum = BlockMax<kPackThreads>(maximum);
  const PowerOfTwo scale = ScaleToHalfRange(maximum);
  if (row < num_rows && threadIdx.x == 0) row_scales[first_row + row] = scale.inverse;
  for (int64_t column = threadIdx.x; column < num_k_tiles * kKTileColumns; column += kPackThreads) {
    const float value = row < num_rows && column < cols ? source[column] * scale.factor : 0.0f;
    tiles[DenseOffset(first_row + row, column, num_k_tiles)] = __float2half_rn(value);
  }
}

constexpr int kEmbedThreads = 512;

// One block a token.
__global__ void __launch_bounds__(kEmbedThreads)
    Embed(const __grid_constant__ PackedMatrix table, int64_t hidden_size, const TokenInput* tokens,
          float* hidden) {
  LaunchDependents();
  WaitForGridDependency();
  const int64_t token = blockIdx.x;
  const int64_t row = tokens[token].id;
  const auto* values = static_cast<const __half*>(table.tiles);
  const float scale = table.row_scales[row];
  for (int64_t i = threadIdx.x; i < hidden_size; i += kEmbedThreads) {
    hidden[token * hidden_size + i] =
        __half2float(values[DenseOffset(row, i, table.num_k_tiles)]) * scale;
  }
}

}  // namespace

cudaError_t LaunchDenseProduct(const ProductArguments& arguments, cudaStream_t stream) {
  return HasDenseProductHopper() ? LaunchDenseProductHopper(arguments, stream)
                                 : LaunchProductOf<DenseWeights>(arguments, stream);
}

cudaError_t LaunchPackDense(const float* values, int64_t cols, int64_t first_row, int64_t num_rows,
                            int64_t num_k_tiles, void* tiles, float* row_scales,
                            cudaStream_t stream) {
  PackDense<<<static_cast<unsigned>(NumMTiles(num_rows) * kMTileRows), kPackThreads, 0, stream>>>(
      values, cols, first_row, num_rows, num_k_tiles, static_cast<__half*>(tiles), row_scales);
  return cudaGetLastError();
}

cudaError_t LaunchEmbedDense(const PackedMatrix& table, int64_t hidden_size,
                             const TokenInput* tokens, int64_t num_tokens, float* hidden,
                             cudaStream_t stream) {
  return LaunchKernel(Embed, dim3(static_cast<unsigned>(num_tokens)), kEmbedThreads,
                      /*shared_bytes=*/0, stream, table, hidden_size, tokens, hidden);
}

}  // namespace ultrasketch::cuda
