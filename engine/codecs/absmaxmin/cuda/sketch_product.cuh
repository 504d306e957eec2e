// What the product kernels of a sketch share.
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_SKETCH_PRODUCT_CUH_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_SKETCH_PRODUCT_CUH_

#include <cstdint>

#include "engine/codecs/absmaxmin/cuda/barriers.cuh"
#include "engine/codecs/absmaxmin/cuda/sketch_decode.cuh"
#include "engine/codecs/cuda/product.cuh"

namespace ultrasketch::cuda {

inline constexpr int kInputRowBytes = kStepColumns * 2;

// The 16-byte pieces of a token's step, swizzled so that eight tokens' are in eight places.
__device__ inline int InputPieceOffset(int token, int piece) {
  return token * kInputRowBytes + (piece ^ (token % 8)) * 16;
}

// Begins the copies of this thread, one of num_threads, of a step's inputs. Tokens past the end
// repeat the last one; their sums are dropped.
template <int kTokens>
__device__ inline void CopyInputs(const ProductArguments& arguments, int64_t first_token, int step,
                                  int thread, int num_threads, uint8_t* inputs) {
  const int64_t row_bytes = PreparedRowBytes(arguments.matrix.num_steps);
  const auto* source =
      static_cast<const uint8_t*>(arguments.prepared) + int64_t{step} * kInputRowBytes;
#pragma unroll 4
  for (int index = thread; index < kTokens * 8; index += num_threads) {
    const int token = index / 8;
    const int64_t row = min(first_token + token, arguments.num_tokens - 1);
    CopyAsync16(inputs + InputPieceOffset(token, index % 8),
                source + row * row_bytes + index % 8 * 16);
  }
}

// Begins the copies of this thread, one of num_threads, of a tile's part of the sketch. Row blocks
// past the end repeat the last one.
__device__ inline void CopySketch(const PackedMatrix& matrix, int64_t first_block, int num_blocks,
                                  int thread, int num_threads, uint32_t* words) {
  const int64_t last_block = (matrix.rows + kSketchBlockRows - 1) / kSketchBlockRows - 1;
  const auto words_per_block = static_cast<int>(matrix.buckets.words_per_block);
  for (int block = 0; block < num_blocks; ++block) {
    const uint32_t* source = static_cast<const uint32_t*>(matrix.tiles) +
                             min(first_block + block, last_block) * words_per_block;
    for (int word = 4 * thread; word < words_per_block; word += 4 * num_threads) {
      CopyAsync16(words + block * words_per_block + word, source + word);
    }
  }
}

// Finds the class of a step; steps only ascend.
class PartCursor {
 public:
  __device__ explicit PartCursor(const SketchPart* parts) : parts_(parts) { Set(); }
  __device__ const PartExpansion& At(int step) {
    while (step >= part_.part.end_step) {
      ++parts_;
      Set();
    }
    return part_;
  }

 private:
  __device__ void Set() {
    part_.part = *parts_;
    part_.SetFactors();
  }

  const SketchPart* parts_;
  PartExpansion part_;
};

// Weights are times 2^-kSketchShift, and row scales may be as large as a float allows.
__device__ inline float FinishSketchSum(float sum, float token_scale, float row_scale, float bias) {
  return FinishSum(sum * static_cast<float>(1 << kSketchShift), token_scale, row_scale, bias);
}

__device__ inline void WriteOutput(const ProductArguments& arguments, int64_t token, int64_t row,
                                   float sum, float token_scale, float row_scale, float bias) {
  const float value = FinishSketchSum(sum, token_scale, row_scale, bias);
  float* out = arguments.y + token * arguments.matrix.rows + row;
  *out = arguments.accumulate ? __fadd_rn(*out, value) : value;
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_SKETCH_PRODUCT_CUH_
