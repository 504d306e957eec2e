// The moments of a site on a CUDA device, and what is fitted to them.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_CUDA_CUDA_MOMENTS_H_
#define ULTRASKETCH_ENGINE_COMPRESS_CUDA_CUDA_MOMENTS_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/compress/cuda/fit_memory.h"
#include "engine/compress/fit_device.h"

namespace ultrasketch::cuda {

// Scratch of the device that any operation may use while it runs.
inline constexpr int64_t kFitWorkspaceBytes = int64_t{256} << 20;

// Weights as floats, whatever they were.
class CudaProduct final : public FitProduct {
 public:
  CudaProduct(FitMemory& memory, int64_t rows, int64_t cols, Array<float> weights,
              Array<float> bias)
      : memory_(memory),
        rows_(rows),
        cols_(cols),
        weights_(std::move(weights)),
        bias_(std::move(bias)) {}

  void Apply(const float* x, int64_t num_tokens, float* y) override;

  const float* weights() const { return weights_.data(); }
  const float* bias() const { return bias_.data(); }  // null: none

 private:
  FitMemory& memory_;
  const int64_t rows_;
  const int64_t cols_;
  const Array<float> weights_;
  const Array<float> bias_;
};

class CudaMoments final : public FitMoments {
 public:
  CudaMoments(FitMemory& memory, void* workspace, const LinearSite& site, const CudaProduct& dense)
      : memory_(memory), workspace_(workspace), rows_(site.rows), cols_(site.cols), dense_(dense) {}

  // Takes complete moments.
  absl::Status Load(SiteMoments moments);

  absl::Status AddInputs(const float* dense_x, const float* x, int64_t num_tokens) override;
  absl::Status AddResiduals(const float* x, const float* dense, const float* compressed,
                            int64_t num_tokens) override;
  absl::Status Complete() override;
  absl::StatusOr<std::vector<double>> InputEnergies() override;
  absl::StatusOr<FoldFit> FitFolded(const FoldLayout& layout, double prior) override;
  absl::StatusOr<double> OutputError(const FitProduct& compressed) override;
  absl::StatusOr<std::vector<double>> ChannelFactors(const FitProduct& compressed) override;
  absl::StatusOr<const SiteMoments*> OnHost() override;

 private:
  // Rows of doubles [cols] that find room in the workspace.
  int64_t RowsAtOnce() const;
  absl::StatusOr<std::vector<double>> Diagonal(const double* matrix, int64_t size);
  // The upper R with (matrix + damping I)^-1 = R^T R; nothing when there is none.
  absl::StatusOr<std::optional<Array<double>>> InverseFactor(const double* matrix, int64_t size,
                                                             double damping);

  FitMemory& memory_;
  void* const workspace_;
  const int64_t rows_;
  const int64_t cols_;
  const CudaProduct& dense_;
  Array<double> input_;   // [cols, cols]
  Array<double> cross_;   // [rows, cols]
  Array<double> output_;  // [rows]
  // Of a site whose outputs are W u: sums of u u^T and of u x^T [cols, cols].
  Array<double> dense_input_;
  Array<double> dense_cross_;
  Array<float> target_;  // [num_tokens, rows] of AddResiduals
  std::optional<SiteMoments> on_host_;
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_COMPRESS_CUDA_CUDA_MOMENTS_H_
