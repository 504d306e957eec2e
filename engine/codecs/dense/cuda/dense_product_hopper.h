// Products of uncompressed weights by wgmma, for any number of tokens. Compute capability 9.0.
#ifndef ULTRASKETCH_ENGINE_CODECS_DENSE_CUDA_DENSE_PRODUCT_HOPPER_H_
#define ULTRASKETCH_ENGINE_CODECS_DENSE_CUDA_DENSE_PRODUCT_HOPPER_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/codecs/cuda/product.h"
#include "engine/codecs/cuda/tile_layout.h"

namespace ultrasketch::cuda {

// K splits of columns begin at multiples of these K tiles, which any kernel reads whole stages of.
inline constexpr int64_t kKSplitUnit = 8;

// A token's sum over a row is one accumulator's from the first column of a K split to its last, and
// the outputs of the K splits are added in order. Matrices of many columns and few rows have two,
// so that few tokens leave no SM without work; others one, of all K tiles.
US_HOST_DEVICE constexpr int64_t DenseKSplitTiles(int64_t rows, int64_t num_k_tiles) {
  const bool has_two = num_k_tiles >= 64 && num_k_tiles * kKTileColumns >= 2 * rows;
  return has_two ? ((num_k_tiles + 1) / 2 + kKSplitUnit - 1) / kKSplitUnit * kKSplitUnit
                 : num_k_tiles;
}

// 1 or 2.
US_HOST_DEVICE constexpr int NumDenseKSplits(int64_t rows, int64_t num_k_tiles) {
  return DenseKSplitTiles(rows, num_k_tiles) < num_k_tiles ? 2 : 1;
}

// Whether this build and the calling thread's device have them. The environment's
// ULTRASKETCH_CUDA_DENSE_WGMMA=off says no, for tests of what other devices run.
bool HasDenseProductHopper();

cudaError_t LaunchDenseProductHopper(const ProductArguments& arguments, cudaStream_t stream);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_DENSE_CUDA_DENSE_PRODUCT_HOPPER_H_
