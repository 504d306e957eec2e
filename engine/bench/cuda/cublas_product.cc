#include "engine/bench/cuda/cublas_product.h"

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"

namespace ultrasketch::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;
constexpr int kMaxAlgorithms = 8;

absl::Status CheckBlas(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(call, ": status ", static_cast<int>(status)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<CublasProduct>> CublasProduct::Create(DeviceTimer& timer,
                                                                     int64_t rows, int64_t cols,
                                                                     int64_t num_tokens,
                                                                     const void* weights,
                                                                     int num_copies) {
  std::unique_ptr<CublasProduct> product(new CublasProduct());
  US_RETURN_IF_ERROR(CheckBlas(cublasLtCreate(&product->handle_), "cublasLtCreate"));
  US_RETURN_IF_ERROR(product->Describe(rows, cols, num_tokens));
  US_ASSIGN_OR_RETURN(product->input_, RandomMemory::Create(num_tokens * cols * 2));
  US_ASSIGN_OR_RETURN(product->output_, RandomMemory::Create(num_tokens * rows * 2));
  US_ASSIGN_OR_RETURN(product->workspace_, RandomMemory::Create(kWorkspaceBytes));

  cublasLtMatmulPreference_t preference = nullptr;
  US_RETURN_IF_ERROR(
      CheckBlas(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate"));
  const size_t workspace_bytes = kWorkspaceBytes;
  cublasLtMatmulHeuristicResult_t proposed[kMaxAlgorithms];
  int num_proposed = 0;
  absl::Status status = CheckBlas(
      cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                           &workspace_bytes, sizeof(workspace_bytes)),
      "cublasLtMatmulPreferenceSetAttribute");
  if (status.ok()) {
    status = CheckBlas(
        cublasLtMatmulAlgoGetHeuristic(product->handle_, product->operation_, product->weights_,
                                       product->inputs_, product->outputs_, product->outputs_,
                                       preference, kMaxAlgorithms, proposed, &num_proposed),
        "cublasLtMatmulAlgoGetHeuristic");
  }
  static_cast<void>(cublasLtMatmulPreferenceDestroy(preference));
  US_RETURN_IF_ERROR(status);
  if (num_proposed == 0) return absl::InternalError("cublasLt proposes no algorithm");
  for (int i = 0; i < num_proposed; ++i) {
    US_ASSIGN_OR_RETURN(const double microseconds, timer.Time(num_copies, [&](int copy) {
      return product->Launch(static_cast<const uint8_t*>(weights) + copy * rows * cols * 2,
                             proposed[i].algo, timer.stream());
    }));
    if (i > 0 && microseconds >= product->microseconds_) continue;
    product->microseconds_ = microseconds;
    product->algorithm_ = proposed[i].algo;
  }
  return product;
}

CublasProduct::~CublasProduct() {
  for (cublasLtMatrixLayout_t layout : {weights_, inputs_, outputs_}) {
    if (layout != nullptr) static_cast<void>(cublasLtMatrixLayoutDestroy(layout));
  }
  if (operation_ != nullptr) static_cast<void>(cublasLtMatmulDescDestroy(operation_));
  if (handle_ != nullptr) static_cast<void>(cublasLtDestroy(handle_));
}

// Column-major: output [rows, tokens] = weights^T [cols, rows] x input [cols, tokens].
absl::Status CublasProduct::Describe(int64_t rows, int64_t cols, int64_t num_tokens) {
  US_RETURN_IF_ERROR(
      CheckBlas(cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                "cublasLtMatmulDescCreate"));
  const cublasOperation_t transpose = CUBLAS_OP_T;
  US_RETURN_IF_ERROR(
      CheckBlas(cublasLtMatmulDescSetAttribute(operation_, CUBLASLT_MATMUL_DESC_TRANSA, &transpose,
                                               sizeof(transpose)),
                "cublasLtMatmulDescSetAttribute"));
  const auto create = [](cublasLtMatrixLayout_t* layout, int64_t height, int64_t width) {
    return CheckBlas(cublasLtMatrixLayoutCreate(layout, CUDA_R_16BF, static_cast<uint64_t>(height),
                                                static_cast<uint64_t>(width), height),
                     "cublasLtMatrixLayoutCreate");
  };
  US_RETURN_IF_ERROR(create(&weights_, cols, rows));
  US_RETURN_IF_ERROR(create(&inputs_, cols, num_tokens));
  return create(&outputs_, rows, num_tokens);
}

absl::Status CublasProduct::Launch(const void* weights, cudaStream_t stream) const {
  return Launch(weights, algorithm_, stream);
}

absl::Status CublasProduct::Launch(const void* weights, const cublasLtMatmulAlgo_t& algorithm,
                                   cudaStream_t stream) const {
  const float alpha = 1.0f;
  const float beta = 0.0f;
  return CheckBlas(
      cublasLtMatmul(handle_, operation_, &alpha, weights, weights_, input_->At(), inputs_, &beta,
                     output_->At(), outputs_, output_->At(), outputs_, &algorithm, workspace_->At(),
                     static_cast<size_t>(kWorkspaceBytes), stream),
      "cublasLtMatmul");
}

}  // namespace ultrasketch::cuda
