// Sign bits, expanded to +1 and -1 in registers right before the tensor cores take them.
//
// A lane's word of a step holds 32 weights: a shift and one three-input logic operation make two of
// them. Roofline: docs/gpu.md.
#include "engine/codecs/cuda/product.cuh"

namespace ultrasketch::cuda {
namespace {

struct FoldWeights {
  static constexpr int kStepBytes = kFoldStepBytes;
  static constexpr int kUnroll = 4;

  using Lane = uint32_t;

  static __device__ Lane Load(const uint8_t* step, int lane) {
    return reinterpret_cast<const uint32_t*>(step)[lane];
  }

  static __device__ void Expand(Lane word, int instruction, uint32_t (&a)[4]) {
#pragma unroll
    for (int reg = 0; reg < 4; ++reg) {
      // UnpackFoldPair, with its second constant in a register, so that it takes one logic
      // operation and not two.
      a[reg] = AndXor(word << (4 * instruction + reg), 0x80008000u, 0x3c003c00u);
    }
  }
};

// One thread a word.
__global__ void PackFold(const uint8_t* bits, int64_t row_bytes, int64_t first_row,
                         int64_t num_rows, int64_t num_steps, uint32_t* words, int64_t num_words) {
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= num_words) return;
  const int lane = static_cast<int>(index % 32);
  const int64_t step = index / 32 % num_steps;
  const int64_t tile = index / 32 / num_steps;
  const auto columns_of = [&](int64_t row) {
    uint32_t columns = 0;
    for (int byte = 0; byte < 2; ++byte) {
      const int64_t offset = step * 8 + lane % 4 * 2 + byte;
      if (row < num_rows && offset < row_bytes) {
        columns |= uint32_t{bits[row * row_bytes + offset]} << (8 * byte);
      }
    }
    return columns;
  };
  const int64_t row = tile * kTileRows + lane / 4;
  words[first_row / kTileRows * num_steps * 32 + index] =
      PackFoldWord(columns_of(row), columns_of(row + 8));
}

}  // namespace

cudaError_t LaunchFoldProduct(const ProductArguments& arguments, cudaStream_t stream) {
  return LaunchProductOf<FoldWeights>(arguments, stream);
}

cudaError_t LaunchPackFold(const uint8_t* bits, int64_t row_bytes, int64_t first_row,
                           int64_t num_rows, int64_t num_steps, void* tiles, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const int64_t num_words = NumRowTiles(num_rows) * num_steps * 32;
  PackFold<<<static_cast<unsigned>((num_words + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      bits, row_bytes, first_row, num_rows, num_steps, static_cast<uint32_t*>(tiles), num_words);
  return cudaGetLastError();
}

}  // namespace ultrasketch::cuda
