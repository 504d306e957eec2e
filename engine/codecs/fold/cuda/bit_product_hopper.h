// Products of sign bits with more than a few tokens on compute capability 9.0.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_H_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_H_

#include <cuda_runtime_api.h>

#include "engine/codecs/cuda/product.h"

namespace ultrasketch::cuda {

// Whether there is such a kernel in this build and for the calling thread's device.
bool HasBitProductHopper();

cudaError_t LaunchBitProductHopper(const ProductArguments& arguments, cudaStream_t stream);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_HOPPER_H_
