// Descriptions of tensors for TMA (ptx/tma.cuh): packed weights, and packed inputs of hi/lo bytes
// (tile_layout.h). The driver's function that encodes them is looked up, not linked.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_TENSOR_MAP_H_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_TENSOR_MAP_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/codecs/cuda/product.h"
#include "engine/codecs/cuda/tile_layout.h"

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

// The map of packed inputs, in boxes of `num_spans` times kHiLoBytes columns of `num_tokens`
// tokens: [span][token][hi, lo][kHiLoBytes], swizzled in units of 128 bytes. Tokens past the last
// are zero.
inline cudaError_t EncodeHiLoMap(EncodeTensorMap encode, const ProductArguments& arguments,
                                 int num_tokens, int num_spans, CUtensorMap* map) {
  const int64_t num_k_tiles = arguments.matrix.num_k_tiles;
  const cuuint64_t extents[] = {kHiLoBytes, 2, static_cast<cuuint64_t>(arguments.num_tokens),
                                static_cast<cuuint64_t>(num_k_tiles * kKTileColumns / kHiLoBytes)};
  const cuuint64_t strides[] = {kHiLoBytes, static_cast<cuuint64_t>(PackedInputBytes(num_k_tiles)),
                                2 * kHiLoBytes};
  const cuuint32_t box[] = {kHiLoBytes, 2, static_cast<cuuint32_t>(num_tokens),
                            static_cast<cuuint32_t>(num_spans)};
  const cuuint32_t element_strides[] = {1, 1, 1, 1};
  const CUresult result = encode(
      map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 4, const_cast<void*>(arguments.packed_input), extents,
      strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// The map of packed weights, in boxes of `box_bytes` of each of `num_m_tiles` M tiles, which have
// `tile_bytes` in all. Columns of a box are in units of 4 or 8 bytes, of which it has no more than
// 256. M tiles past the last are zero.
inline cudaError_t EncodeWeightMap(EncodeTensorMap encode, const PackedMatrix& matrix,
                                   int64_t tile_bytes, int box_bytes, int num_m_tiles,
                                   int unit_bytes, CUtensorMap* map) {
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(tile_bytes / unit_bytes),
                                static_cast<cuuint64_t>(NumMTiles(matrix.rows))};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(tile_bytes)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(box_bytes / unit_bytes),
                            static_cast<cuuint32_t>(num_m_tiles)};
  const cuuint32_t element_strides[] = {1, 1};
  const CUresult result =
      encode(map, unit_bytes == 4 ? CU_TENSOR_MAP_DATA_TYPE_INT32 : CU_TENSOR_MAP_DATA_TYPE_INT64,
             2, const_cast<void*>(matrix.tiles), extents, strides, box, element_strides,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_TENSOR_MAP_H_
