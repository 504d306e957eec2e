// Rows of tables of group-quantized integers (grouped_product.h) as float.
#include <cuda_fp16.h>

#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/grouped/cuda/grouped_product.h"

namespace ultrasketch::cuda {
namespace {

constexpr int kThreads = 256;

template <bool kIsInt4>
__device__ int ReadInteger(const uint8_t* tiles, int64_t row, int64_t column, int64_t num_k_tiles) {
  if constexpr (kIsInt4) {
    const auto byte = static_cast<int8_t>(tiles[Int4Offset(row, column, num_k_tiles)]);
    return (Int4InUpperHalf(column) ? byte : static_cast<int8_t>(byte << 4)) >> 4;
  } else {
    return static_cast<int8_t>(tiles[Int8Offset(row, column, num_k_tiles)]);
  }
}

// Grid: (tokens, blocks of kThreads columns).
template <bool kIsInt4>
__global__ void EmbedGrouped(const __grid_constant__ PackedMatrix table, int64_t hidden_size,
                             const TokenInput* tokens, float* hidden) {
  LaunchDependents();
  WaitForGridDependency();
  const int64_t token = blockIdx.x;
  const int64_t column = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (column >= hidden_size) return;
  const int64_t row = tokens[token].id;
  const auto* tiles = static_cast<const uint8_t*>(table.tiles);
  const uint16_t bits = *reinterpret_cast<const uint16_t*>(
      tiles + GroupScaleOffset(kIsInt4, row, column / kKTileColumns, table.num_k_tiles));
  const float scale = table.has_half_scales ? __half2float(__ushort_as_half(bits))
                                            : __uint_as_float(uint32_t{bits} << 16);
  const int value = ReadInteger<kIsInt4>(tiles, row, column, table.num_k_tiles);
  hidden[token * hidden_size + column] = static_cast<float>(value) * scale;
}

template <bool kIsInt4>
cudaError_t Launch(const PackedMatrix& table, int64_t hidden_size, const TokenInput* tokens,
                   int64_t num_tokens, float* hidden, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(num_tokens),
                  static_cast<unsigned>((hidden_size + kThreads - 1) / kThreads));
  return LaunchKernel(EmbedGrouped<kIsInt4>, grid, kThreads, /*shared_bytes=*/0, stream, table,
                      hidden_size, tokens, hidden);
}

}  // namespace

cudaError_t LaunchEmbedInt8(const PackedMatrix& table, int64_t hidden_size,
                            const TokenInput* tokens, int64_t num_tokens, float* hidden,
                            cudaStream_t stream) {
  return Launch<false>(table, hidden_size, tokens, num_tokens, hidden, stream);
}

cudaError_t LaunchEmbedInt4(const PackedMatrix& table, int64_t hidden_size,
                            const TokenInput* tokens, int64_t num_tokens, float* hidden,
                            cudaStream_t stream) {
  return Launch<true>(table, hidden_size, tokens, num_tokens, hidden, stream);
}

}  // namespace ultrasketch::cuda
