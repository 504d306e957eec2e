// Sign bits: which kernel multiplies them, and how they are packed.
#include "engine/codecs/fold/cuda/bit_layout.h"
#include "engine/codecs/fold/cuda/bit_product_hopper.h"
#include "engine/codecs/fold/cuda/bit_product_skinny.cuh"
#include "engine/codecs/fold/cuda/bit_product_tiled.cuh"
#include "engine/codecs/fold/cuda/fold_product.h"

namespace ultrasketch::cuda {
namespace {

// From 9 tokens on wgmma is faster where there is one; from 5 on, of many bits: what it takes to
// expand them for two tiles of four tokens counts then, and not how long a kernel's chain of
// instructions is.
bool PrefersHopper(const ProductArguments& arguments) {
  constexpr int64_t kManyBytes = int64_t{4} << 20;
  const PackedMatrix& matrix = arguments.matrix;
  const int64_t num_bytes =
      NumMTiles(matrix.rows) * (matrix.num_k_tiles / kKTilesPerBitKTile) * kBitKTileBytes;
  return arguments.num_tokens >= (num_bytes >= kManyBytes ? 5 : 9) && HasBitProductHopper();
}

// One thread a word.
__global__ void PackFold(const uint8_t* bits, int64_t row_bytes, int64_t first_row,
                         int64_t num_rows, int64_t num_k_tiles, uint32_t* words,
                         int64_t num_words) {
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= num_words) return;
  const int word = static_cast<int>(index % 4);
  const int lane = static_cast<int>(index / 4 % 32);
  const int64_t k_tile = index / (4 * 32) % num_k_tiles;
  const int64_t tile = index / (4 * 32) / num_k_tiles;
  const int64_t row = tile * kMTileRows + lane / 4 + word % 2 * 8;
  const auto run = [&](int run_of_half) {
    uint32_t columns = 0;
    for (int byte = 0; byte < 2; ++byte) {
      const int64_t offset =
          k_tile * (kBitKTileColumns / 8) + word / 2 * (kHiLoBytes / 8) + run_of_half * 2 + byte;
      if (row < num_rows && offset < row_bytes) {
        columns |= uint32_t{bits[row * row_bytes + offset]} << (8 * byte);
      }
    }
    return columns;
  };
  words[first_row / kMTileRows * num_k_tiles * (4 * 32) + index] =
      PackBitWord(run(lane % 4), run(lane % 4 + 4));
}

}  // namespace

bool CanGateFoldProduct(const ProductArguments& arguments) {
  return !arguments.accumulate && arguments.matrix.rows % (2 * kMTileRows) == 0 &&
         PrefersHopper(arguments);
}

cudaError_t LaunchFoldProduct(const ProductArguments& arguments, cudaStream_t stream) {
  if (arguments.is_gated && !CanGateFoldProduct(arguments)) return cudaErrorInvalidValue;
  if (PrefersHopper(arguments)) return LaunchBitProductHopper(arguments, stream);
  if (arguments.num_tokens <= kMaxSkinnyTokens) return LaunchBitProductSkinny(arguments, stream);
  return LaunchBitProductTiled(arguments, stream);
}

cudaError_t LaunchPackFold(const uint8_t* bits, int64_t row_bytes, int64_t first_row,
                           int64_t num_rows, int64_t num_k_tiles, void* tiles,
                           cudaStream_t stream) {
  constexpr int kThreads = 256;
  const int64_t num_bit_k_tiles = num_k_tiles / kKTilesPerBitKTile;
  const int64_t num_words =
      NumMTiles(num_rows) * num_bit_k_tiles * (kBitKTileBytes / int64_t{sizeof(uint32_t)});
  PackFold<<<static_cast<unsigned>((num_words + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      bits, row_bytes, first_row, num_rows, num_bit_k_tiles, static_cast<uint32_t*>(tiles),
      num_words);
  return cudaGetLastError();
}

}  // namespace ultrasketch::cuda
