// What the kernels that multiply sign bits share: outputs from integer sums.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_CUH_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/codecs/cuda/byte_product.cuh"
#include "engine/codecs/fold/cuda/bit_layout.h"

namespace ultrasketch::cuda {

// An output from the sums of bit * high byte and bit * low byte. Sums of weight * input are within
// 32 bits (kMaxBuckets); what leads to them may wrap around.
__device__ inline float FinishBits(int high, int low, const InputTotal& input, float row_scale,
                                   float bias) {
  const unsigned bits = static_cast<unsigned>(high) * 256u + static_cast<unsigned>(low);
  const auto sum = static_cast<int>(2u * bits - static_cast<unsigned>(input.total));
  return FinishSum(static_cast<float>(sum), input.scale, row_scale, bias);
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_PRODUCT_CUH_
