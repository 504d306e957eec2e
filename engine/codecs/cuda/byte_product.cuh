// Products with inputs of hi/lo int8 (tile_layout.h): exact sums of integers.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_BYTE_PRODUCT_CUH_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_BYTE_PRODUCT_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/codecs/cuda/product.cuh"
#include "engine/codecs/cuda/product.h"
#include "engine/codecs/cuda/tile_layout.h"

namespace ultrasketch::cuda {

// The scale and the total of a token's packed input.
struct InputTotal {
  float scale;  // NaN where an input was not finite
  int total;
};

__device__ inline const InputTrailer& TrailerOf(const ProductArguments& arguments, int64_t token) {
  return *reinterpret_cast<const InputTrailer*>(PackedInputRow(arguments, token) +
                                                PackedScaleOffset(arguments.matrix.num_k_tiles));
}

__device__ inline InputTotal SumTotals(const InputTrailer& trailer) {
  const auto* totals = reinterpret_cast<const int4*>(trailer.totals);
  float scale = trailer.scale;
  unsigned sum = 0;
#pragma unroll
  for (int i = 0; i < kMaxInputSplits / 4; ++i) {
    const int4 four = totals[i];
    for (const int total : {four.x, four.y, four.z, four.w}) {
      if (total == kNotFinite) scale = __int_as_float(0x7fffffff);
      sum += static_cast<unsigned>(total);
    }
  }
  return {scale, static_cast<int>(sum)};
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_BYTE_PRODUCT_CUH_
