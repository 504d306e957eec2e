// Products with an AbsMaxMin sketch by wgmma. Compute capability 9.0a.
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_PRODUCT_HOPPER_H_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_PRODUCT_HOPPER_H_

#include <cuda_runtime_api.h>

#include "engine/codecs/cuda/product.h"

namespace ultrasketch::cuda {

// Whether the code for it was built, and the product fits a device with these properties.
bool FitsHopperProduct(const ProductArguments& arguments, int compute_capability,
                       int max_shared_bytes);

// The product (absmaxmin_matrix.h) where it fits.
cudaError_t LaunchHopperProduct(const ProductArguments& arguments, int max_shared_bytes,
                                cudaStream_t stream);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_PRODUCT_HOPPER_H_
