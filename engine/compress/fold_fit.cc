#include "engine/compress/fold_fit.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/base/check.h"
#include "engine/codecs/fold/fold_layout.h"
#include "engine/compress/dense_algebra.h"

namespace ultrasketch {
namespace {

using Eigen::VectorXd;

// Rows that share one sweep over the factor, which may be larger than a cache, and positions whose
// rounding errors are spread together.
constexpr int64_t kRowsPerSweep = 64;
constexpr int64_t kPositionsPerBlock = 64;

// H with its groups in the order in which they are rounded, damped so that it is well regular.
struct System {
  std::vector<int64_t> order;     // order[position] = group
  VectorXd units;                 // what a level of the group weighs
  VectorXd limits;                // the group's largest level
  RowMajorMatrix input;           // permuted and damped H
  RowMajorMatrix factor;          // upper U with H = U^T U
  RowMajorMatrix inverse_factor;  // upper U with H^-1 = U^T U
};

// Loud groups first: the quiet ones make up for their errors at little cost.
std::vector<int64_t> RoundingOrder(const RowMajorMatrix& input) {
  std::vector<int64_t> order(static_cast<size_t>(input.rows()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return input(a, a) > input(b, b); });
  return order;
}

// False when there is nothing to fit: no input energy at all.
bool MakeSystem(const RowMajorMatrix& input, absl::Span<const uint8_t> planes,
                double relative_damping, System& system) {
  const int64_t size = input.rows();
  const double mean = input.trace() / static_cast<double>(size);
  if (!(mean > 0) || !std::isfinite(mean)) return false;
  system.order = RoundingOrder(input);
  system.units.resize(size);
  system.limits.resize(size);
  for (int64_t position = 0; position < size; ++position) {
    const int group_planes =
        planes[static_cast<size_t>(system.order[static_cast<size_t>(position)])];
    system.units(position) = static_cast<double>(FoldUnit(group_planes));
    system.limits(position) = (1 << group_planes) - 1;
  }
  system.input.resize(size, size);
  for (int64_t row = 0; row < size; ++row) {
    for (int64_t column = 0; column < size; ++column) {
      system.input(row, column) =
          input(system.order[static_cast<size_t>(row)], system.order[static_cast<size_t>(column)]);
    }
  }
  // Rounding errors of a large, nearly singular H can exceed a small damping: raise it until both
  // factorizations stand.
  double damping = relative_damping * mean;
  for (int attempt = 0; attempt < 12; ++attempt, damping = std::max(damping, 1e-12 * mean) * 10) {
    system.factor = system.input;
    system.factor.diagonal().array() += damping;
    if (!Cholesky(system.factor)) continue;
    system.inverse_factor = system.factor;
    if (!InvertCholesky(system.inverse_factor) || !Cholesky(system.inverse_factor)) continue;
    if (!system.inverse_factor.diagonal().allFinite()) continue;
    system.input.diagonal().array() += damping;
    return true;
  }
  return false;
}

// The scale that minimizes |theta - scale * weights|_H, not negative.
double BestScale(const VectorXd& cross, const VectorXd& weights, const VectorXd& product) {
  const double norm = weights.dot(product);
  return norm > 0 ? std::max(0.0, weights.dot(cross) / norm) : 0.0;
}

// The odd number nearest to `value`, at most `limit` in magnitude.
double NearestLevel(double value, double limit) {
  return std::clamp(2 * std::floor(value / 2) + 1, -limit, limit);
}

class RowFitter {
 public:
  RowFitter(const System& system, const FoldFitOptions& options)
      : system_(system), options_(options), size_(system.input.rows()) {}

  // `cross` [num_rows, size], in the order of rounding. Levels to `levels`, scales to `scales`.
  void Fit(const RowMajorMatrix& cross, RowMajorMatrix& levels, VectorXd& scales) const {
    RowMajorMatrix theta = cross;
    SolveCholesky(system_.factor, theta);
    scales = theta.cwiseAbs().rowwise().mean();
    levels.resize(theta.rows(), size_);
    Round(scales, theta, levels);

    RowMajorMatrix weights = levels * system_.units.asDiagonal();
    RowMajorMatrix products(theta.rows(), size_);
    MultiplyAdd(theta.rows(), size_, size_, 1.0, weights.data(), size_, system_.input.data(), size_,
                0.0, products.data(), size_);
    for (int64_t row = 0; row < theta.rows(); ++row) {
      VectorXd row_levels = levels.row(row).transpose();
      VectorXd product = products.row(row).transpose();
      scales(row) = Improve(cross.row(row).transpose(), product, row_levels);
      levels.row(row) = row_levels.transpose();
    }
  }

 private:
  // Rounds `theta` position by position and spreads each error over the positions after it: at once
  // within a block of positions, and all of a block's errors together over the positions behind it.
  void Round(const VectorXd& scales, RowMajorMatrix& theta, RowMajorMatrix& levels) const {
    const int64_t num_rows = theta.rows();
    RowMajorMatrix errors(num_rows, kPositionsPerBlock);
    for (int64_t first = 0; first < size_; first += kPositionsPerBlock) {
      const int64_t last = std::min(first + kPositionsPerBlock, size_);
      for (int64_t position = first; position < last; ++position) {
        const int64_t num_left = last - position - 1;
        const auto factor_row =
            system_.inverse_factor.row(position).segment(position + 1, num_left);
        const double diagonal = system_.inverse_factor(position, position);
        for (int64_t row = 0; row < num_rows; ++row) {
          const double value = theta(row, position);
          const double step = scales(row) * system_.units(position);
          const double level =
              NearestLevel(step > 0 ? value / step : value, system_.limits(position));
          levels(row, position) = level;
          const double error = (value - step * level) / diagonal;
          theta.row(row).segment(position + 1, num_left) -= error * factor_row;
          errors(row, position - first) = error;
        }
      }
      MultiplyAdd(num_rows, size_ - last, last - first, -1.0, errors.data(), kPositionsPerBlock,
                  system_.inverse_factor.data() + first * size_ + last, size_, 1.0,
                  theta.data() + last, size_);
    }
  }

  // Coordinate descent on a row's levels, the scale refitted between passes. `product` is H times
  // the row's weights. Returns the scale.
  double Improve(const VectorXd& cross, VectorXd& product, VectorXd& levels) const {
    VectorXd weights = levels.cwiseProduct(system_.units);
    double scale = BestScale(cross, weights, product);
    for (int pass = 0; pass < options_.num_passes && scale > 0; ++pass) {
      int64_t num_changes = 0;
      for (int64_t k = 0; k < size_; ++k) {
        const double unit = system_.units(k);
        const double best =
            levels(k) + (cross(k) / scale - product(k)) / (unit * system_.input(k, k));
        const double level = NearestLevel(best, system_.limits(k));
        if (level == levels(k) || std::abs(level - best) >= std::abs(levels(k) - best)) continue;
        product += (level - levels(k)) * unit * system_.input.row(k).transpose();
        levels(k) = level;
        ++num_changes;
      }
      weights = levels.cwiseProduct(system_.units);
      scale = BestScale(cross, weights, product);
      if (num_changes == 0) break;
    }
    return scale;
  }

  const System& system_;
  const FoldFitOptions& options_;
  const int64_t size_;
};

}  // namespace

FoldFit FitFold(const FoldMoments& moments, absl::Span<const uint8_t> planes,
                const FoldFitOptions& options, ThreadPool& pool) {
  const int64_t size = moments.input.rows();
  const int64_t rows = moments.cross.rows();
  US_CHECK(moments.input.cols() == size && moments.cross.cols() == size);
  US_CHECK(static_cast<int64_t>(planes.size()) == size);
  FoldFit fit;
  fit.levels.resize(static_cast<size_t>(rows * size), -1);
  fit.scales.resize(static_cast<size_t>(rows), 0.0f);
  System system;
  if (!MakeSystem(moments.input, planes, options.relative_damping, system)) return fit;

  const RowFitter fitter(system, options);
  pool.ParallelFor(rows, kRowsPerSweep, [&](int64_t begin, int64_t end, int) {
    for (int64_t first = begin; first < end; first += kRowsPerSweep) {
      const int64_t num_rows = std::min(kRowsPerSweep, end - first);
      RowMajorMatrix cross(num_rows, size);
      for (int64_t position = 0; position < size; ++position) {
        cross.col(position) =
            moments.cross.block(first, system.order[static_cast<size_t>(position)], num_rows, 1);
      }
      RowMajorMatrix levels;
      VectorXd scales;
      fitter.Fit(cross, levels, scales);
      for (int64_t row = 0; row < num_rows; ++row) {
        int16_t* row_levels = fit.levels.data() + (first + row) * size;
        for (int64_t position = 0; position < size; ++position) {
          row_levels[system.order[static_cast<size_t>(position)]] =
              static_cast<int16_t>(levels(row, position));
        }
        const auto scale = static_cast<float>(scales(row));
        fit.scales[static_cast<size_t>(first + row)] = std::isfinite(scale) ? scale : 0.0f;
      }
    }
  });
  return fit;
}

}  // namespace ultrasketch
