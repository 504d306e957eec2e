// Products with uncompressed weights as fp16 (tile_layout.h), and how they are packed and looked
// up.
#ifndef ULTRASKETCH_ENGINE_CODECS_DENSE_CUDA_DENSE_PRODUCT_H_
#define ULTRASKETCH_ENGINE_CODECS_DENSE_CUDA_DENSE_PRODUCT_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/codecs/cuda/product.h"

namespace ultrasketch::cuda {

cudaError_t LaunchDenseProduct(const ProductArguments& arguments, cudaStream_t stream);

// Packs `num_rows` rows of `values` [num_rows, cols] in device memory from `first_row`, a multiple
// of kMTileRows, on; rows and columns that fill up the last tile are written too. The scale of a
// row is the power of two that brings its absmax into [2^14, 2^15): within fp16's range, and exact
// for all that BF16 holds.
cudaError_t LaunchPackDense(const float* values, int64_t cols, int64_t first_row, int64_t num_rows,
                            int64_t num_k_tiles, void* tiles, float* row_scales,
                            cudaStream_t stream);

// LaunchEmbedFunction for a table packed so.
cudaError_t LaunchEmbedDense(const PackedMatrix& table, int64_t hidden_size,
                             const TokenInput* tokens, int64_t num_tokens, float* hidden,
                             cudaStream_t stream);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_DENSE_CUDA_DENSE_PRODUCT_H_
