// The driver's function that describes what the tensor unit copies. The driver is not linked.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_TENSOR_MAP_H_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_TENSOR_MAP_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

namespace ultrasketch::cuda {

using EncodeTensorMap = decltype(&cuTensorMapEncodeTiled);

// Null where the driver has none.
inline EncodeTensorMap FindEncodeTensorMap() {
  static const EncodeTensorMap encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &result);
    const bool is_found = error == cudaSuccess && result == cudaDriverEntryPointSuccess;
    return is_found ? reinterpret_cast<EncodeTensorMap>(function) : nullptr;
  }();
  return encode;
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_TENSOR_MAP_H_
