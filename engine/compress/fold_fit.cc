#include "engine/compress/fold_fit.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "Eigen/Cholesky"

#include "engine/base/check.h"

namespace ultrasketch {
namespace {

using Eigen::VectorXd;

// Rows that share one sweep over the factor, which may be larger than a cache.
constexpr int64_t kRowsPerSweep = 16;

// H with its buckets in the order in which they are rounded, damped so that it is well regular.
struct System {
  std::vector<int64_t> order;         // order[position] = bucket
  RowMajorMatrix input;               // permuted and damped H
  RowMajorMatrix inverse_factor;      // upper U with H^-1 = U^T U
  Eigen::LLT<RowMajorMatrix> factor;  // of `input`
};

// Loud buckets first: the quiet ones make up for their errors at little cost.
std::vector<int64_t> RoundingOrder(const RowMajorMatrix& input) {
  std::vector<int64_t> order(static_cast<size_t>(input.rows()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return input(a, a) > input(b, b); });
  return order;
}

// False when there is nothing to fit: no input energy at all.
bool MakeSystem(const RowMajorMatrix& input, double relative_damping, System& system) {
  const int64_t size = input.rows();
  const double mean = input.trace() / static_cast<double>(size);
  if (!(mean > 0) || !std::isfinite(mean)) return false;
  system.order = RoundingOrder(input);
  system.input.resize(size, size);
  for (int64_t row = 0; row < size; ++row) {
    for (int64_t column = 0; column < size; ++column) {
      system.input(row, column) =
          input(system.order[static_cast<size_t>(row)], system.order[static_cast<size_t>(column)]);
    }
  }
  // Rounding errors of a large, nearly singular H can exceed a small damping: raise it until both
  // factorisations stand.
  double damping = relative_damping * mean;
  for (int attempt = 0; attempt < 12; ++attempt, damping = std::max(damping, 1e-12 * mean) * 10) {
    RowMajorMatrix damped = system.input;
    damped.diagonal().array() += damping;
    system.factor.compute(damped);
    if (system.factor.info() != Eigen::Success) continue;
    const RowMajorMatrix inverse = system.factor.solve(RowMajorMatrix::Identity(size, size));
    const Eigen::LLT<RowMajorMatrix> inverse_factor(inverse);
    if (inverse_factor.info() != Eigen::Success) continue;
    system.inverse_factor = inverse_factor.matrixU();
    if (!system.inverse_factor.allFinite()) continue;
    system.input = std::move(damped);
    return true;
  }
  return false;
}

// The scale that minimizes |theta - scale * signs|_H, not negative.
double BestScale(const VectorXd& cross, const VectorXd& signs, const VectorXd& product) {
  const double norm = signs.dot(product);
  return norm > 0 ? std::max(0.0, signs.dot(cross) / norm) : 0.0;
}

class RowFitter {
 public:
  RowFitter(const System& system, const FoldFitOptions& options)
      : system_(system), options_(options), size_(system.input.rows()) {}

  // `cross` [num_rows, size] and `theta`, in the order of rounding. Signs to `signs`, scales to
  // `scales`.
  void Fit(const RowMajorMatrix& cross, const RowMajorMatrix& theta, RowMajorMatrix& signs,
           VectorXd& scales) const {
    scales = theta.cwiseAbs().rowwise().mean();
    Round(theta, scales, signs);
    for (int64_t row = 0; row < theta.rows(); ++row) {
      VectorXd row_signs = signs.row(row).transpose();
      scales(row) = FlipSigns(cross.row(row).transpose(), row_signs);
      signs.row(row) = row_signs.transpose();
    }
  }

 private:
  void Round(const RowMajorMatrix& theta, const VectorXd& scales, RowMajorMatrix& signs) const {
    RowMajorMatrix left = theta;
    signs.resize(theta.rows(), size_);
    for (int64_t position = 0; position < size_; ++position) {
      const auto factor_row = system_.inverse_factor.row(position).tail(size_ - position - 1);
      const double diagonal = system_.inverse_factor(position, position);
      for (int64_t row = 0; row < theta.rows(); ++row) {
        const double value = left(row, position);
        const double sign = value < 0 ? -1.0 : 1.0;
        signs(row, position) = sign;
        const double error = (value - scales(row) * sign) / diagonal;
        left.row(row).tail(size_ - position - 1) -= error * factor_row;
      }
    }
  }

  // Coordinate descent on the signs, the scale refitted between passes. Returns the scale.
  double FlipSigns(const VectorXd& cross, VectorXd& signs) const {
    VectorXd product = system_.input * signs;
    double scale = BestScale(cross, signs, product);
    for (int pass = 0; pass < options_.num_flip_passes; ++pass) {
      int64_t num_flips = 0;
      for (int64_t k = 0; k < size_; ++k) {
        // A quarter of the change of the squared error, over the scale.
        const double change =
            scale * system_.input(k, k) + signs(k) * (cross(k) - scale * product(k));
        if (change >= 0) continue;
        product -= 2 * signs(k) * system_.input.row(k).transpose();
        signs(k) = -signs(k);
        ++num_flips;
      }
      scale = BestScale(cross, signs, product);
      if (num_flips == 0) break;
    }
    return scale;
  }

  const System& system_;
  const FoldFitOptions& options_;
  const int64_t size_;
};

}  // namespace

FoldFit FitFold(const FoldMoments& moments, const FoldFitOptions& options, ThreadPool& pool) {
  const int64_t size = moments.input.rows();
  const int64_t rows = moments.cross.rows();
  US_CHECK(moments.input.cols() == size && moments.cross.cols() == size);
  const int64_t row_bytes = (size + 7) / 8;
  FoldFit fit;
  fit.bits.resize(static_cast<size_t>(rows * row_bytes), 0);
  fit.scales.resize(static_cast<size_t>(rows), 0.0f);
  System system;
  if (!MakeSystem(moments.input, options.relative_damping, system)) return fit;

  const RowFitter fitter(system, options);
  pool.ParallelFor(rows, kRowsPerSweep, [&](int64_t begin, int64_t end, int) {
    for (int64_t first = begin; first < end; first += kRowsPerSweep) {
      const int64_t num_rows = std::min(kRowsPerSweep, end - first);
      RowMajorMatrix cross(num_rows, size);
      for (int64_t position = 0; position < size; ++position) {
        cross.col(position) =
            moments.cross.block(first, system.order[static_cast<size_t>(position)], num_rows, 1);
      }
      const RowMajorMatrix theta = system.factor.solve(cross.transpose()).transpose();
      RowMajorMatrix signs;
      VectorXd scales;
      fitter.Fit(cross, theta, signs, scales);
      for (int64_t row = 0; row < num_rows; ++row) {
        uint8_t* row_bits = fit.bits.data() + (first + row) * row_bytes;
        for (int64_t position = 0; position < size; ++position) {
          if (signs(row, position) < 0) continue;
          const int64_t bucket = system.order[static_cast<size_t>(position)];
          row_bits[bucket / 8] |= static_cast<uint8_t>(1 << (bucket % 8));
        }
        const auto scale = static_cast<float>(scales(row));
        fit.scales[static_cast<size_t>(first + row)] = std::isfinite(scale) ? scale : 0.0f;
      }
    }
  });
  return fit;
}

double RelativeOutputError(const FoldMoments& moments, const FoldFit& fit) {
  const int64_t size = moments.input.rows();
  const int64_t row_bytes = (size + 7) / 8;
  double error = moments.output.sum();
  for (int64_t row = 0; row < moments.cross.rows(); ++row) {
    VectorXd weights(size);
    const double scale = fit.scales[static_cast<size_t>(row)];
    for (int64_t bucket = 0; bucket < size; ++bucket) {
      const uint8_t byte = fit.bits[static_cast<size_t>(row * row_bytes + bucket / 8)];
      weights(bucket) = (byte >> (bucket % 8) & 1) != 0 ? scale : -scale;
    }
    error += weights.dot(moments.input * weights) - 2 * moments.cross.row(row).dot(weights);
  }
  const double total = moments.output.sum();
  return total > 0 ? std::max(0.0, error) / total : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace ultrasketch
