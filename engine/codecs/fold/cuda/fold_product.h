// Products with sign bits, and how they are packed.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_FOLD_PRODUCT_H_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_FOLD_PRODUCT_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/codecs/cuda/product.h"

namespace ultrasketch::cuda {

// The product with `arguments.matrix.tiles` as bit_layout.h says.
cudaError_t LaunchFoldProduct(const ProductArguments& arguments, cudaStream_t stream);
// Whether it takes these arguments gated, on the calling thread's device. Otherwise is_gated must
// not be set.
bool CanGateFoldProduct(const ProductArguments& arguments);

// Packs `num_rows` rows from `first_row`, a multiple of kMTileRows, on; rows and columns that fill
// up the last tile are written too. `bits` is [num_rows, row_bytes] in device memory in the codec's
// stored order, `tiles` the whole matrix.
cudaError_t LaunchPackFold(const uint8_t* bits, int64_t row_bytes, int64_t first_row,
                           int64_t num_rows, int64_t num_k_tiles, void* tiles, cudaStream_t stream);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_FOLD_PRODUCT_H_
