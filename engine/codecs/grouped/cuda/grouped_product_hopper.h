// Products with group-quantized integers by wgmma, for more than 8 tokens.
#ifndef ULTRASKETCH_ENGINE_CODECS_GROUPED_CUDA_GROUPED_PRODUCT_HOPPER_H_
#define ULTRASKETCH_ENGINE_CODECS_GROUPED_CUDA_GROUPED_PRODUCT_HOPPER_H_

#include <cuda_runtime_api.h>

#include "engine/codecs/cuda/product.h"

namespace ultrasketch::cuda {

// Whether this build and the calling thread's device have them.
bool HasGroupedProductHopper();

cudaError_t LaunchGroupedProductHopper(bool is_int4, const ProductArguments& arguments,
                                       cudaStream_t stream);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_GROUPED_CUDA_GROUPED_PRODUCT_HOPPER_H_
