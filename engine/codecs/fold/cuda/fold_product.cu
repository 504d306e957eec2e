// Sign bits: which kernel multiplies them, and how they are packed.
#include "engine/codecs/fold/cuda/bit_layout.h"
#include "engine/codecs/fold/cuda/bit_product_few.cuh"
#include "engine/codecs/fold/cuda/bit_product_hopper.h"
#include "engine/codecs/fold/cuda/bit_product_tiled.cuh"

namespace ultrasketch::cuda {
namespace {

// From 9 tokens on wgmma is faster where there is one; from 5 on, of many bits: what it takes to
// expand them for two tiles of four tokens counts then, and not how long a kernel's chain of
// instructions is.
bool PrefersHopper(const ProductArguments& arguments) {
  constexpr int64_t kManyBytes = int64_t{4} << 20;
  const PackedMatrix& matrix = arguments.matrix;
  const int64_t num_bytes =
      NumRowTiles(matrix.rows) * (matrix.num_steps / kStepsPerBitStep) * kBitStepBytes;
  return arguments.num_tokens >= (num_bytes >= kManyBytes ? 5 : 9) && HasBitProductHopper();
}

// One thread a word.
__global__ void PackFold(const uint8_t* bits, int64_t row_bytes, int64_t first_row,
                         int64_t num_rows, int64_t num_steps, uint32_t* words, int64_t num_words) {
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= num_words) return;
  const int word = static_cast<int>(index % 4);
  const int lane = static_cast<int>(index / 4 % 32);
  const int64_t step = index / (4 * 32) % num_steps;
  const int64_t tile = index / (4 * 32) / num_steps;
  const int64_t row = tile * kTileRows + lane / 4 + word % 2 * 8;
  const auto chunk = [&](int chunk_of_half) {
    uint32_t columns = 0;
    for (int byte = 0; byte < 2; ++byte) {
      const int64_t offset =
          step * (kBitStepColumns / 8) + word / 2 * (kPlaneBytes / 8) + chunk_of_half * 2 + byte;
      if (row < num_rows && offset < row_bytes) {
        columns |= uint32_t{bits[row * row_bytes + offset]} << (8 * byte);
      }
    }
    return columns;
  };
  words[first_row / kTileRows * num_steps * (4 * 32) + index] =
      PackBitWord(chunk(lane % 4), chunk(lane % 4 + 4));
}

}  // namespace

bool CanGateFoldProduct(const ProductArguments& arguments) {
  return !arguments.accumulate && arguments.matrix.rows % (2 * kTileRows) == 0 &&
         PrefersHopper(arguments);
}

cudaError_t LaunchFoldProduct(const ProductArguments& arguments, cudaStream_t stream) {
  if (arguments.is_gated && !CanGateFoldProduct(arguments)) return cudaErrorInvalidValue;
  if (PrefersHopper(arguments)) return LaunchBitProductHopper(arguments, stream);
  if (arguments.num_tokens <= kMostFewTokens) return LaunchBitProductFew(arguments, stream);
  return LaunchBitProductTiled(arguments, stream);
}

cudaError_t LaunchPackFold(const uint8_t* bits, int64_t row_bytes, int64_t first_row,
                           int64_t num_rows, int64_t num_steps, void* tiles, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const int64_t num_bit_steps = num_steps / kStepsPerBitStep;
  const int64_t num_words =
      NumRowTiles(num_rows) * num_bit_steps * (kBitStepBytes / int64_t{sizeof(uint32_t)});
  PackFold<<<static_cast<unsigned>((num_words + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      bits, row_bytes, first_row, num_rows, num_bit_steps, static_cast<uint32_t*>(tiles),
      num_words);
  return cudaGetLastError();
}

}  // namespace ultrasketch::cuda
