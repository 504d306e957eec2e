// The dense product of bfloat16 matrices by cublasLt: what a compressed one is compared with.
#ifndef ULTRASKETCH_ENGINE_BENCH_CUDA_CUBLAS_PRODUCT_H_
#define ULTRASKETCH_ENGINE_BENCH_CUDA_CUBLAS_PRODUCT_H_

#include <cublasLt.h>

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/bench/cuda/device_timer.h"

namespace ultrasketch::cuda {

// output [num_tokens, rows] = input [num_tokens, cols] x weights [rows, cols] transposed, all
// bfloat16, by the quickest of the algorithms that cublasLt proposes.
class CublasProduct {
 public:
  // Times the algorithms on `weights`, num_copies matrices one after the other.
  static absl::StatusOr<std::unique_ptr<CublasProduct>> Create(DeviceTimer& timer, int64_t rows,
                                                               int64_t cols, int64_t num_tokens,
                                                               const void* weights, int num_copies);
  ~CublasProduct();
  CublasProduct(const CublasProduct&) = delete;
  CublasProduct& operator=(const CublasProduct&) = delete;

  // The time of the quickest algorithm.
  double microseconds() const { return microseconds_; }
  absl::Status Launch(const void* weights, cudaStream_t stream) const;

 private:
  CublasProduct() = default;
  absl::Status Describe(int64_t rows, int64_t cols, int64_t num_tokens);
  absl::Status Launch(const void* weights, const cublasLtMatmulAlgo_t& algorithm,
                      cudaStream_t stream) const;

  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t weights_ = nullptr;
  cublasLtMatrixLayout_t inputs_ = nullptr;
  cublasLtMatrixLayout_t outputs_ = nullptr;
  std::unique_ptr<RandomMemory> input_;
  std::unique_ptr<RandomMemory> output_;
  std::unique_ptr<RandomMemory> workspace_;
  cublasLtMatmulAlgo_t algorithm_ = {};
  double microseconds_ = 0;
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BENCH_CUDA_CUBLAS_PRODUCT_H_
