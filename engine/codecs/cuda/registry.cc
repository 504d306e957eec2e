#include "engine/codecs/cuda/cuda_codec.h"

namespace ultrasketch::cuda {

const CudaCodec* FindCudaCodec(std::string_view name) {
  for (const CudaCodec* codec :
       {&kAbsMaxMinCuda, &kDenseCuda, &kFoldCuda, &kInt4Cuda, &kInt8Cuda}) {
    if (codec->name == name) return codec;
  }
  return nullptr;
}

}  // namespace ultrasketch::cuda
