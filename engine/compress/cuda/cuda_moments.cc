#include "engine/compress/cuda/cuda_moments.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/compress/cuda/fit_kernels.h"

namespace ultrasketch::cuda {
namespace {

// A layout's groups in some order, in device memory.
struct LoadedGroups {
  Array<int> first;
  Array<int> columns;
  Array<float> signs;

  FoldGroups view() const { return {first.data(), columns.data(), signs.data(), first.size() - 1}; }
};

absl::StatusOr<LoadedGroups> LoadGroups(const FoldLayout& layout, absl::Span<const int> order,
                                        FitMemory& memory) {
  std::vector<int> first = {0};
  std::vector<int> columns;
  std::vector<float> signs;
  for (const int group : order) {
    for (const int32_t column : layout.ColumnsOf(group)) {
      columns.push_back(column);
      signs.push_back(layout.sign_of_column()[static_cast<size_t>(column)]);
    }
    first.push_back(static_cast<int>(columns.size()));
  }
  LoadedGroups groups;
  US_ASSIGN_OR_RETURN(groups.first, memory.Load<int>(first));
  US_ASSIGN_OR_RETURN(groups.columns, memory.Load<int>(columns));
  US_ASSIGN_OR_RETURN(groups.signs, memory.Load<float>(signs));
  return groups;
}

// [groups], in the order of rounding.
struct GroupPlanes {
  std::vector<double> units;
  std::vector<double> limits;
};

GroupPlanes PlanesOf(const FoldLayout& layout, absl::Span<const int> order) {
  std::vector<int64_t> planes;
  for (const FoldClass& fold_class : layout.classes()) {
    planes.insert(planes.end(), static_cast<size_t>(fold_class.num_groups()), fold_class.planes);
  }
  GroupPlanes result;
  for (const int group : order) {
    const int64_t count = planes[static_cast<size_t>(group)];
    result.units.push_back(static_cast<double>(FoldUnit(count)));
    result.limits.push_back(static_cast<double>((int64_t{1} << count) - 1));
  }
  return result;
}

bool AllFinite(absl::Span<const double> values) {
  return std::all_of(values.begin(), values.end(),
                     [](double value) { return std::isfinite(value); });
}

}  // namespace

void CudaProduct::Apply(const float* x, int64_t num_tokens, float* y) {
  memory_.device().Activate();
  LaunchForward(x, weights_.data(), bias_.data(), num_tokens, rows_, cols_, y, memory_.stream());
  memory_.Check("product of a site");
}

absl::Status CudaMoments::Load(SiteMoments moments) {
  US_CHECK(moments.input.rows() == cols_ && moments.input.cols() == cols_);
  US_CHECK(moments.cross.rows() == rows_ && moments.cross.cols() == cols_);
  US_CHECK(moments.output.size() == rows_);
  const auto load = [&](const double* values, int64_t size, Array<double>& to) -> absl::Status {
    US_ASSIGN_OR_RETURN(
        to, memory_.Load<double>(absl::MakeConstSpan(values, static_cast<size_t>(size))));
    return absl::OkStatus();
  };
  US_RETURN_IF_ERROR(load(moments.input.data(), cols_ * cols_, input_));
  US_RETURN_IF_ERROR(load(moments.cross.data(), rows_ * cols_, cross_));
  return load(moments.output.data(), rows_, output_);
}

absl::Status CudaMoments::AddInputs(const float* dense_x, const float* x, int64_t num_tokens) {
  if (input_.size() == 0) {
    US_ASSIGN_OR_RETURN(input_, memory_.AllocateZero<double>(cols_ * cols_));
    US_ASSIGN_OR_RETURN(dense_input_, memory_.AllocateZero<double>(cols_ * cols_));
    US_ASSIGN_OR_RETURN(dense_cross_, memory_.AllocateZero<double>(cols_ * cols_));
  }
  LaunchOuterProducts(x, cols_, x, cols_, num_tokens, /*upper=*/true, input_.data(), workspace_,
                      kFitWorkspaceBytes, memory_.stream());
  LaunchOuterProducts(dense_x, cols_, x, cols_, num_tokens, /*upper=*/false, dense_cross_.data(),
                      workspace_, kFitWorkspaceBytes, memory_.stream());
  LaunchOuterProducts(dense_x, cols_, dense_x, cols_, num_tokens, /*upper=*/true,
                      dense_input_.data(), workspace_, kFitWorkspaceBytes, memory_.stream());
  memory_.Check("moments of inputs");
  return absl::OkStatus();
}

absl::Status CudaMoments::AddResiduals(const float* x, const float* dense, const float* compressed,
                                       int64_t num_tokens) {
  if (input_.size() == 0) {
    US_ASSIGN_OR_RETURN(input_, memory_.AllocateZero<double>(cols_ * cols_));
    US_ASSIGN_OR_RETURN(cross_, memory_.AllocateZero<double>(rows_ * cols_));
    US_ASSIGN_OR_RETURN(output_, memory_.AllocateZero<double>(rows_));
  }
  if (target_.size() < num_tokens * rows_) {
    US_ASSIGN_OR_RETURN(target_, memory_.Allocate<float>(num_tokens * rows_));
  }
  LaunchTarget(dense, compressed, dense_.bias(), num_tokens, rows_, target_.data(),
               memory_.stream());
  US_CHECK(kColumnSumSlices * rows_ * static_cast<int64_t>(sizeof(double)) <= kFitWorkspaceBytes);
  LaunchColumnSquares(target_.data(), num_tokens, rows_, output_.data(),
                      static_cast<double*>(workspace_), memory_.stream());
  LaunchOuterProducts(x, cols_, x, cols_, num_tokens, /*upper=*/true, input_.data(), workspace_,
                      kFitWorkspaceBytes, memory_.stream());
  LaunchOuterProducts(target_.data(), rows_, x, cols_, num_tokens, /*upper=*/false, cross_.data(),
                      workspace_, kFitWorkspaceBytes, memory_.stream());
  memory_.Check("moments of residuals");
  return absl::OkStatus();
}

absl::Status CudaMoments::Complete() {
  target_ = Array<float>();
  LaunchCompleteSymmetric(cols_, input_.data(), memory_.stream());
  memory_.Check("symmetric moments");
  if (dense_input_.size() == 0) return absl::OkStatus();
  LaunchCompleteSymmetric(cols_, dense_input_.data(), memory_.stream());
  US_ASSIGN_OR_RETURN(cross_, memory_.Allocate<double>(rows_ * cols_));
  US_ASSIGN_OR_RETURN(output_, memory_.Allocate<double>(rows_));
  auto* const products = static_cast<double*>(workspace_);
  for (int64_t first = 0; first < rows_; first += RowsAtOnce()) {
    const int64_t count = std::min(RowsAtOnce(), rows_ - first);
    const float* const weights = dense_.weights() + first * cols_;
    LaunchProduct(count, cols_, cols_, 1.0, weights, cols_, dense_cross_.data(), cols_, 0.0,
                  cross_.data() + first * cols_, cols_, memory_.stream());
    LaunchProduct(count, cols_, cols_, 1.0, weights, cols_, dense_input_.data(), cols_, 0.0,
                  products, cols_, memory_.stream());
    LaunchRowDots(products, weights, count, cols_, output_.data() + first, memory_.stream());
  }
  memory_.Check("moments of outputs");
  dense_input_ = Array<double>();
  dense_cross_ = Array<double>();
  return absl::OkStatus();
}

int64_t CudaMoments::RowsAtOnce() const {
  return std::max<int64_t>(1, kFitWorkspaceBytes / (cols_ * static_cast<int64_t>(sizeof(double))));
}

absl::StatusOr<std::vector<double>> CudaMoments::Diagonal(const double* matrix, int64_t size) {
  US_ASSIGN_OR_RETURN(const Array<double> diagonal, memory_.Allocate<double>(size));
  LaunchCopyDiagonal(matrix, size, diagonal.data(), memory_.stream());
  memory_.Check("diagonal");
  std::vector<double> values(static_cast<size_t>(size));
  US_RETURN_IF_ERROR(memory_.Download<double>(diagonal.data(), absl::MakeSpan(values)));
  return values;
}

absl::StatusOr<std::optional<Array<double>>> CudaMoments::InverseFactor(const double* matrix,
                                                                        int64_t size,
                                                                        double damping) {
  US_ASSIGN_OR_RETURN(Array<double> factor, memory_.Allocate<double>(size * size));
  US_ASSIGN_OR_RETURN(const Array<uint8_t> scratch,
                      memory_.Allocate<uint8_t>(InverseFactorScratchBytes(size)));
  US_ASSIGN_OR_RETURN(const Array<int> failed, memory_.AllocateZero<int>(1));
  LaunchInverseFactor(matrix, size, damping, scratch.data(), factor.data(), failed.data(),
                      memory_.stream());
  memory_.Check("factorization");
  int has_failed = 0;
  US_RETURN_IF_ERROR(memory_.Download<int>(failed.data(), absl::MakeSpan(&has_failed, 1)));
  US_ASSIGN_OR_RETURN(const std::vector<double> diagonal, Diagonal(factor.data(), size));
  if (has_failed != 0 || !AllFinite(diagonal)) return std::nullopt;
  return std::optional<Array<double>>(std::move(factor));
}

absl::StatusOr<std::vector<double>> CudaMoments::InputEnergies() {
  return Diagonal(input_.data(), cols_);
}

absl::StatusOr<FoldFit> CudaMoments::FitFolded(const FoldLayout& layout, double prior) {
  US_CHECK(layout.cols() == cols_);
  const FoldFitOptions options;
  const int64_t size = layout.groups();
  cudaStream_t const stream = memory_.stream();
  FoldFit fit;
  fit.levels.resize(static_cast<size_t>(rows_ * size), -1);
  fit.scales.resize(static_cast<size_t>(rows_), 0.0f);

  // Loud groups first: the quiet ones make up for their errors at little cost.
  std::vector<int> order(static_cast<size_t>(size));
  std::iota(order.begin(), order.end(), 0);
  double mean = 0;
  {
    US_ASSIGN_OR_RETURN(const LoadedGroups groups, LoadGroups(layout, order, memory_));
    US_ASSIGN_OR_RETURN(const Array<double> diagonal, memory_.Allocate<double>(size));
    LaunchFoldDiagonal(groups.view(), input_.data(), cols_, prior, diagonal.data(), stream);
    memory_.Check("folded diagonal");
    std::vector<double> energies(static_cast<size_t>(size));
    US_RETURN_IF_ERROR(memory_.Download<double>(diagonal.data(), absl::MakeSpan(energies)));
    mean = std::accumulate(energies.begin(), energies.end(), 0.0) / static_cast<double>(size);
    if (!(mean > 0) || !std::isfinite(mean)) return fit;
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return energies[static_cast<size_t>(a)] > energies[static_cast<size_t>(b)];
    });
  }
  US_ASSIGN_OR_RETURN(const LoadedGroups groups, LoadGroups(layout, order, memory_));
  const GroupPlanes planes = PlanesOf(layout, order);
  US_ASSIGN_OR_RETURN(const Array<double> units, memory_.Load<double>(planes.units));
  US_ASSIGN_OR_RETURN(const Array<double> limits, memory_.Load<double>(planes.limits));
  US_ASSIGN_OR_RETURN(const Array<double> input, memory_.Allocate<double>(size * size));
  US_ASSIGN_OR_RETURN(const Array<double> cross, memory_.Allocate<double>(rows_ * size));
  LaunchFoldInput(groups.view(), input_.data(), cols_, prior, input.data(), stream);
  LaunchFoldCross(groups.view(), cross_.data(), dense_.weights(), rows_, cols_, prior, cross.data(),
                  stream);
  memory_.Check("folded moments");

  // As on CPUs: the damping is raised until the factorization stands.
  std::optional<Array<double>> factor;
  double damping = options.relative_damping * mean;
  for (int attempt = 0; attempt < 12 && !factor.has_value(); ++attempt) {
    if (attempt > 0) damping = std::max(damping, 1e-12 * mean) * 10;
    US_ASSIGN_OR_RETURN(factor, InverseFactor(input.data(), size, damping));
  }
  if (!factor.has_value()) return fit;
  LaunchAddToDiagonal(size, damping, input.data(), stream);

  // theta = G H^-1 = (G R^T) R.
  US_ASSIGN_OR_RETURN(const Array<double> products, memory_.Allocate<double>(rows_ * size));
  US_ASSIGN_OR_RETURN(const Array<double> theta, memory_.Allocate<double>(rows_ * size));
  LaunchProductUpper(rows_, size, cross.data(), size, factor->data(), size, /*transposed=*/true,
                     products.data(), size, stream);
  LaunchProductUpper(rows_, size, products.data(), size, factor->data(), size,
                     /*transposed=*/false, theta.data(), size, stream);
  US_ASSIGN_OR_RETURN(const Array<double> magnitudes, memory_.Allocate<double>(rows_));
  LaunchMeanMagnitudes(theta.data(), rows_, size, magnitudes.data(), stream);
  memory_.Check("least squares");

  US_ASSIGN_OR_RETURN(const Array<int16_t> levels, memory_.Allocate<int16_t>(rows_ * size));
  {
    US_ASSIGN_OR_RETURN(const Array<double> errors, memory_.Allocate<double>(rows_ * kRoundBlock));
    for (int64_t first = 0; first < size; first += kRoundBlock) {
      const int64_t count = std::min(kRoundBlock, size - first);
      const int64_t last = first + count;
      LaunchRound(first, count, rows_, size, factor->data(), units.data(), limits.data(),
                  magnitudes.data(), theta.data(), levels.data(), errors.data(), stream);
      if (last == size) break;
      LaunchProduct(rows_, size - last, count, -1.0, static_cast<const double*>(errors.data()),
                    kRoundBlock, factor->data() + first * size + last, size, 1.0,
                    theta.data() + last, size, stream);
    }
    memory_.Check("rounding");
  }

  LaunchLevelWeights(levels.data(), units.data(), rows_, size, theta.data(), stream);
  LaunchProduct(rows_, size, size, 1.0, static_cast<const double*>(theta.data()), size,
                input.data(), size, 0.0, products.data(), size, stream);
  US_ASSIGN_OR_RETURN(const Array<float> scales, memory_.Allocate<float>(rows_));
  LaunchImprove(input.data(), cross.data(), units.data(), limits.data(), rows_, size,
                options.num_passes, products.data(), levels.data(), scales.data(),
                memory_.device().max_shared_bytes(), stream);
  memory_.Check("levels");

  US_ASSIGN_OR_RETURN(const Array<int> loaded_order, memory_.Load<int>(order));
  US_ASSIGN_OR_RETURN(const Array<int16_t> by_group, memory_.Allocate<int16_t>(rows_ * size));
  LaunchPermuteLevels(levels.data(), loaded_order.data(), rows_, size, by_group.data(), stream);
  memory_.Check("order of levels");
  US_RETURN_IF_ERROR(memory_.Download<int16_t>(by_group.data(), absl::MakeSpan(fit.levels)));
  US_RETURN_IF_ERROR(memory_.Download<float>(scales.data(), absl::MakeSpan(fit.scales)));
  return fit;
}

absl::StatusOr<double> CudaMoments::OutputError(const FitProduct& compressed) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  std::vector<double> values(static_cast<size_t>(rows_));
  US_RETURN_IF_ERROR(memory_.Download<double>(output_.data(), absl::MakeSpan(values)));
  const double total = std::accumulate(values.begin(), values.end(), 0.0);
  if (!(total > 0 && std::isfinite(total))) return kNan;
  US_ASSIGN_OR_RETURN(const Array<double> changes, memory_.Allocate<double>(rows_));
  auto* const products = static_cast<double*>(workspace_);
  for (int64_t first = 0; first < rows_; first += RowsAtOnce()) {
    const int64_t count = std::min(RowsAtOnce(), rows_ - first);
    const float* const weights =
        static_cast<const CudaProduct&>(compressed).weights() + first * cols_;
    memory_.device().Check(cudaMemcpyAsync(products, cross_.data() + first * cols_,
                                           static_cast<size_t>(count * cols_) * sizeof(double),
                                           cudaMemcpyDeviceToDevice, memory_.stream()),
                           "cudaMemcpyAsync on the device");
    LaunchProduct(count, cols_, cols_, 1.0, weights, cols_, input_.data(), cols_, -2.0, products,
                  cols_, memory_.stream());
    LaunchRowDots(products, weights, count, cols_, changes.data() + first, memory_.stream());
  }
  memory_.Check("output error");
  US_RETURN_IF_ERROR(memory_.Download<double>(changes.data(), absl::MakeSpan(values)));
  const double error = (total + std::accumulate(values.begin(), values.end(), 0.0)) / total;
  return std::isfinite(error) ? std::max(0.0, error) : kNan;
}

absl::StatusOr<std::vector<double>> CudaMoments::ChannelFactors(const FitProduct& compressed) {
  const float* const weights = static_cast<const CudaProduct&>(compressed).weights();
  cudaStream_t const stream = memory_.stream();
  std::vector<double> factors(static_cast<size_t>(cols_), 1.0);
  // The normal equations: (H o W'^T W') g = diag(W'^T G), o elementwise.
  US_ASSIGN_OR_RETURN(const Array<double> normal, memory_.AllocateZero<double>(cols_ * cols_));
  LaunchOuterProducts(weights, cols_, weights, cols_, rows_, /*upper=*/true, normal.data(),
                      workspace_, kFitWorkspaceBytes, stream);
  LaunchCompleteSymmetric(cols_, normal.data(), stream);
  LaunchMultiply(input_.data(), cols_ * cols_, normal.data(), stream);
  US_ASSIGN_OR_RETURN(const Array<double> right, memory_.Allocate<double>(cols_));
  LaunchColumnDots(weights, cross_.data(), rows_, cols_, right.data(), stream);
  memory_.Check("normal equations");
  US_ASSIGN_OR_RETURN(const std::vector<double> diagonal, Diagonal(normal.data(), cols_));
  const double damping = kRelativeChannelDamping *
                         std::accumulate(diagonal.begin(), diagonal.end(), 0.0) /
                         static_cast<double>(cols_);
  if (!(damping > 0) || !std::isfinite(damping)) return factors;
  US_ASSIGN_OR_RETURN(const std::optional<Array<double>> factor,
                      InverseFactor(normal.data(), cols_, damping));
  if (!factor.has_value()) return factors;
  std::vector<double> values(static_cast<size_t>(cols_));
  US_RETURN_IF_ERROR(memory_.Download<double>(right.data(), absl::MakeSpan(values)));
  for (double& value : values) value += damping;
  US_RETURN_IF_ERROR(memory_.Upload<double>(values, right.data()));
  US_ASSIGN_OR_RETURN(const Array<double> half, memory_.Allocate<double>(cols_));
  LaunchMatrixVector(factor->data(), cols_, /*transposed=*/false, right.data(), half.data(),
                     stream);
  LaunchMatrixVector(factor->data(), cols_, /*transposed=*/true, half.data(), right.data(), stream);
  memory_.Check("channel factors");
  US_RETURN_IF_ERROR(memory_.Download<double>(right.data(), absl::MakeSpan(values)));
  return AllFinite(values) ? values : factors;
}

absl::StatusOr<const SiteMoments*> CudaMoments::OnHost() {
  if (!on_host_.has_value()) {
    SiteMoments moments;
    moments.input.resize(cols_, cols_);
    moments.cross.resize(rows_, cols_);
    moments.output.resize(rows_);
    const auto download = [&](const Array<double>& from, double* to) {
      return memory_.Download<double>(from.data(),
                                      absl::MakeSpan(to, static_cast<size_t>(from.size())));
    };
    US_RETURN_IF_ERROR(download(input_, moments.input.data()));
    US_RETURN_IF_ERROR(download(cross_, moments.cross.data()));
    US_RETURN_IF_ERROR(download(output_, moments.output.data()));
    on_host_ = std::move(moments);
  }
  return &*on_host_;
}

}  // namespace ultrasketch::cuda
