// Ways to multiply with an AbsMaxMin sketch that write the whole matrix to device memory first:
// what the fused kernels are compared with.
#ifndef ULTRASKETCH_ENGINE_BENCH_CUDA_SKETCH_BASELINES_H_
#define ULTRASKETCH_ENGINE_BENCH_CUDA_SKETCH_BASELINES_H_

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/codecs/cuda/product.h"

namespace ultrasketch::cuda {

// The decoding of a sketch as a framework executes it, an operator at a time on bfloat16 matrices:
// for each hash row index_select through stored 64-bit indices; for each but the first abs, abs,
// greater and where; at last a multiplication by the rows' scales. The buckets are numbers of the
// matrices' type, as frameworks have no shorter ones.
struct NaiveSketch {
  int64_t rows = 0;
  int64_t cols = 0;  // even
  int64_t hash_rows = 0;
  int64_t buckets = 0;                    // of a hash row
  const __nv_bfloat16* values = nullptr;  // [hash_rows, rows, buckets]
  const int64_t* indices = nullptr;       // [hash_rows, cols]
  const __nv_bfloat16* scales = nullptr;  // [rows]
  __nv_bfloat16* best = nullptr;          // [rows, cols]: the result
  __nv_bfloat16* gathered = nullptr;      // [rows, cols], and the two that follow
  __nv_bfloat16* magnitudes[2] = {};
  bool* larger = nullptr;
};
cudaError_t LaunchNaiveDecode(const NaiveSketch& sketch, cudaStream_t stream);

// One kernel that decodes the whole of a packed sketch (absmaxmin_matrix.h) to bfloat16, out [rows,
// num_k_tiles * 64]: weights without their rows' scales.
cudaError_t LaunchWholeDecode(const PackedMatrix& matrix, __nv_bfloat16* out, cudaStream_t stream);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BENCH_CUDA_SKETCH_BASELINES_H_
