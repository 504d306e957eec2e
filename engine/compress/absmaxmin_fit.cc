#include "engine/compress/absmaxmin_fit.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/functional/function_ref.h"

#include "engine/base/check.h"
#include "engine/codecs/absmaxmin/absmaxmin_sketch.h"
#include "engine/compress/dense_algebra.h"

namespace ultrasketch {
namespace {

using Eigen::VectorXd;

// Rows that share one sweep over the moments.
constexpr int64_t kRowsPerTile = 64;

// Rows that a site's units are chosen by.
constexpr int64_t kSampleRows = 48;

// Of the inputs' mean energy: how much a column counts that no token has used.
constexpr double kRelativePrior = 3e-2;

// Steps tried, relative to the one with which the largest level is the root mean square of a row.
constexpr double kLeastStep = 0.15;
constexpr double kLargestStep = 5;
constexpr double kStepRatio = 1.25;

constexpr int64_t kLargestOwnExponent = 8;

// What rows are fitted to: the moments with the prior.
struct Problem {
  RowMajorMatrix input;  // H, positive definite
  RowMajorMatrix cross;  // G
};

Problem WithPrior(const SiteMoments& moments, absl::Span<const float> weights) {
  const int64_t cols = moments.input.cols();
  const double mean = moments.input.trace() / static_cast<double>(cols);
  double prior = kRelativePrior * mean;
  Problem problem = {moments.input, moments.cross};
  if (!(mean > 0) || !std::isfinite(mean)) {
    problem.input.setZero();
    problem.cross.setZero();
    prior = 1;
  }
  problem.input.diagonal().array() += prior;
  problem.cross +=
      prior *
      Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(
          weights.data(), problem.cross.rows(), cols)
          .cast<double>();
  return problem;
}

// For each column the class it belongs to; empty when there is only one.
std::vector<uint8_t> ClassesByImportance(absl::Span<const AbsMaxMinClass> classes,
                                         absl::Span<const float> weights, const VectorXd& energy) {
  if (classes.size() == 1) return {};
  const size_t cols = static_cast<size_t>(energy.size());
  std::vector<double> importance(cols);
  for (size_t i = 0; i < weights.size(); ++i) {
    importance[i % cols] += static_cast<double>(weights[i]) * static_cast<double>(weights[i]);
  }
  for (size_t column = 0; column < cols; ++column) {
    importance[column] *= energy(static_cast<int64_t>(column));
  }
  std::vector<size_t> order(cols);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return importance[a] > importance[b]; });
  std::vector<uint8_t> column_classes(cols);
  size_t rank = 0;
  for (size_t index = 0; index < classes.size(); ++index) {
    for (int64_t i = 0; i < classes[index].num_columns; ++i, ++rank) {
      column_classes[order[rank]] = static_cast<uint8_t>(index);
    }
  }
  return column_classes;
}

bool HasOwnBuckets(const AbsMaxMinClass& sketch_class) {
  return sketch_class.buckets == sketch_class.num_columns && sketch_class.hash_rows == 1;
}

int8_t NearestLevel(const AbsMaxMinClass& sketch_class, double value, double step) {
  const double unit = step * static_cast<double>(sketch_class.unit());
  if (!(unit > 0)) return 0;
  return static_cast<int8_t>(std::clamp(std::nearbyint(value / unit),
                                        static_cast<double>(sketch_class.least_level()),
                                        static_cast<double>(sketch_class.largest_level())));
}

// Sketches rows at the step that suits each.
class RowSketcher {
 public:
  struct Result {
    double step = 0;
    double factor = 0;  // of the decoded row that brings it nearest to the row
    double gain = 0;    // what of the row's energy it has then
  };

  RowSketcher(const AbsMaxMinLayout& layout, const VectorXd& energy)
      : layout_(layout),
        energy_(energy),
        kept_(static_cast<size_t>(layout.num_buckets())),
        levels_(kept_.size()),
        units_(static_cast<size_t>(layout.cols())) {}

  // The row's levels and decoded form follow.
  Result Sketch(const float* row) {
    double largest_step = 0;
    for (int64_t index = 0; index < layout_.num_classes(); ++index) {
      const AbsMaxMinClass& sketch_class = layout_.classes()[static_cast<size_t>(index)];
      float* kept = kept_.data() + layout_.FirstBucketOf(index);
      InsertMinima(layout_, index, row, kept);
      const auto count = static_cast<size_t>(sketch_class.num_buckets());
      const double norm = Eigen::Map<const Eigen::VectorXf>(kept, static_cast<int64_t>(count))
                              .cast<double>()
                              .norm();
      largest_step = std::max(largest_step, norm / std::sqrt(static_cast<double>(count)) /
                                                static_cast<double>(sketch_class.unit()) /
                                                static_cast<double>(sketch_class.largest_level()));
    }
    Result best;
    for (double factor = kLeastStep; factor < kLargestStep; factor *= kStepRatio) {
      const Result result = Try(row, largest_step * factor);
      if (result.gain > best.gain) best = result;
    }
    return best.gain > 0 ? Try(row, best.step) : best;
  }

  // Of the last row.
  const std::vector<int8_t>& levels() const { return levels_; }
  const std::vector<float>& units() const { return units_; }

 private:
  Result Try(const float* row, double step) {
    size_t bucket = 0;
    for (const AbsMaxMinClass& sketch_class : layout_.classes()) {
      const bool own = HasOwnBuckets(sketch_class);
      for (int64_t i = 0; i < sketch_class.num_buckets(); ++i, ++bucket) {
        levels_[bucket] =
            own ? NearestLevel(sketch_class, kept_[bucket], step)
                : QuantizeLevel(sketch_class, kept_[bucket], static_cast<float>(step));
      }
    }
    QueryRow(layout_, levels_.data(), units_.data());
    double product = 0;
    double norm = 0;
    for (int64_t column = 0; column < layout_.cols(); ++column) {
      const double unit = units_[static_cast<size_t>(column)];
      product += energy_(column) * unit * row[column];
      norm += energy_(column) * unit * unit;
    }
    if (!(norm > 0 && product > 0)) return {};
    return {step, product / norm / step, product * product / norm};
  }

  const AbsMaxMinLayout& layout_;
  const VectorXd& energy_;
  std::vector<float> kept_;
  std::vector<int8_t> levels_;
  std::vector<float> units_;
};

// The units of the classes that keep most of a sample of the rows of `target` [rows, cols]. Columns
// that share buckets keep the least of them, so only own buckets may want a larger unit.
AbsMaxMinLayout WithUnits(const LinearSite& site, std::vector<AbsMaxMinClass> classes,
                          uint64_t seed, std::vector<uint8_t> column_classes,
                          absl::Span<const float> target, const VectorXd& energy) {
  const bool mixed = classes.size() == 2 && HasOwnBuckets(classes[0]) && !HasOwnBuckets(classes[1]);
  double most = -1;
  std::vector<AbsMaxMinClass> best = classes;
  for (int64_t exponent = 0; mixed && exponent <= kLargestOwnExponent; ++exponent) {
    classes[0].unit_exponent = exponent;
    const AbsMaxMinLayout layout(seed, site.name, classes, column_classes);
    RowSketcher sketcher(layout, energy);
    double gain = 0;
    const int64_t stride = std::max<int64_t>(1, site.rows / kSampleRows);
    for (int64_t row = 0; row < site.rows; row += stride) {
      gain += sketcher.Sketch(target.data() + row * site.cols).gain;
    }
    if (gain > most) {
      most = gain;
      best = classes;
    }
  }
  return AbsMaxMinLayout(seed, site.name, std::move(best), std::move(column_classes));
}

// The columns with buckets of their own, by descending energy.
struct OwnColumns {
  int64_t class_index = 0;
  std::vector<int64_t> columns;
  std::vector<int64_t> buckets;
  RowMajorMatrix factor;          // upper U with their part of H = U^T U
  RowMajorMatrix inverse_factor;  // upper U with that part's inverse = U^T U

  int64_t size() const { return static_cast<int64_t>(columns.size()); }
};

OwnColumns FindOwnColumns(const AbsMaxMinLayout& layout, const RowMajorMatrix& input) {
  OwnColumns own;
  while (own.class_index < layout.num_classes() &&
         !HasOwnBuckets(layout.classes()[static_cast<size_t>(own.class_index)])) {
    ++own.class_index;
  }
  if (own.class_index == layout.num_classes()) return own;
  const int64_t size = layout.classes()[static_cast<size_t>(own.class_index)].num_columns;
  const int64_t first_place = layout.FirstPlaceOf(own.class_index);
  const absl::Span<const int32_t> bucket_of_place = layout.BucketsOf(own.class_index, 0);
  std::vector<int64_t> places(static_cast<size_t>(size));
  std::iota(places.begin(), places.end(), int64_t{0});
  const auto column_of = [&](int64_t place) -> int64_t {
    return layout.columns()[static_cast<size_t>(first_place + place)];
  };
  std::stable_sort(places.begin(), places.end(), [&](int64_t a, int64_t b) {
    return input(column_of(a), column_of(a)) > input(column_of(b), column_of(b));
  });
  for (const int64_t place : places) {
    own.columns.push_back(column_of(place));
    own.buckets.push_back(bucket_of_place[static_cast<size_t>(place)]);
  }
  own.factor = input(own.columns, own.columns);
  own.inverse_factor = own.factor;
  // The prior makes H regular, unless its numbers are too large for a double.
  if (!Cholesky(own.factor)) return {};
  own.inverse_factor = own.factor;
  if (!InvertCholesky(own.inverse_factor) || !Cholesky(own.inverse_factor)) return {};
  return own;
}

// body(begin, end) for tiles of rows that do not depend on the number of threads.
void ForTiles(int64_t rows, ThreadPool& pool, absl::FunctionRef<void(int64_t, int64_t)> body) {
  const int64_t num_tiles = (rows + kRowsPerTile - 1) / kRowsPerTile;
  pool.ParallelFor(num_tiles, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t tile = begin; tile < end; ++tile) {
      body(tile * kRowsPerTile, std::min((tile + 1) * kRowsPerTile, rows));
    }
  });
}

// theta = G H^-1 as floats, or the weights themselves where that cannot be had.
std::vector<float> Target(const Problem& problem, absl::Span<const float> weights,
                          ThreadPool& pool) {
  std::vector<float> target(weights.begin(), weights.end());
  RowMajorMatrix factor = problem.input;
  if (!Cholesky(factor)) return target;
  ForTiles(problem.cross.rows(), pool, [&](int64_t begin, int64_t end) {
    RowMajorMatrix theta = problem.cross.middleRows(begin, end - begin);
    SolveCholesky(factor, theta);
    if (!theta.allFinite()) return;
    std::transform(theta.data(), theta.data() + theta.size(), target.data() + begin * factor.cols(),
                   [](double value) { return static_cast<float>(value); });
  });
  return target;
}

class SiteFitter {
 public:
  SiteFitter(const AbsMaxMinLayout& layout, const Problem& problem, absl::Span<const float> target)
      : layout_(layout),
        problem_(problem),
        target_(target),
        energy_(problem.input.diagonal()),
        own_(FindOwnColumns(layout, problem.input)),
        largest_scale_(std::numeric_limits<float>::max() / LargestMagnitude(layout.classes()) / 2) {
  }

  // Rows [begin, end), to levels [rows, buckets] and scales [rows] of the whole site.
  void FitRows(int64_t begin, int64_t end, int8_t* levels, float* scales) const {
    const int64_t count = end - begin;
    const int64_t cols = layout_.cols();
    RowSketcher sketcher(layout_, energy_);
    std::vector<RowSketcher::Result> results;
    RowMajorMatrix units(count, cols);
    for (int64_t i = 0; i < count; ++i) {
      results.push_back(sketcher.Sketch(target_.data() + (begin + i) * cols));
      std::copy(sketcher.levels().begin(), sketcher.levels().end(), RowLevels(begin + i, levels));
      units.row(i) =
          Eigen::Map<const Eigen::RowVectorXf>(sketcher.units().data(), cols).cast<double>();
    }
    if (own_.size() > 0) RefitOwn(begin, results, units, levels);

    const RowMajorMatrix products = TimesInput(units);
    for (int64_t i = 0; i < count; ++i) {
      const double norm = units.row(i).dot(products.row(i));
      const double product = units.row(i).dot(problem_.cross.row(begin + i));
      const double scale = norm > 0 ? std::max(0.0, product / norm) : 0.0;
      scales[begin + i] = static_cast<float>(std::min(scale, largest_scale_));
    }
  }

 private:
  int8_t* RowLevels(int64_t row, int8_t* levels) const {
    return levels + row * layout_.num_buckets();
  }

  RowMajorMatrix TimesInput(const RowMajorMatrix& rows) const {
    const int64_t cols = layout_.cols();
    RowMajorMatrix products(rows.rows(), cols);
    MultiplyAdd(rows.rows(), cols, cols, 1.0, rows.data(), cols, problem_.input.data(), cols, 0.0,
                products.data(), cols);
    return products;
  }

  // Given what the other columns decode to.
  void RefitOwn(int64_t begin, absl::Span<const RowSketcher::Result> results, RowMajorMatrix& units,
                int8_t* levels) const {
    const AbsMaxMinClass& own_class = layout_.classes()[static_cast<size_t>(own_.class_index)];
    RowMajorMatrix others = units;
    for (const int64_t column : own_.columns) others.col(column).setZero();
    for (int64_t i = 0; i < units.rows(); ++i) {
      const RowSketcher::Result& result = results[static_cast<size_t>(i)];
      others.row(i) *= result.factor * result.step;
    }
    const RowMajorMatrix products = TimesInput(others);
    RowMajorMatrix theta(units.rows(), own_.size());
    for (int64_t j = 0; j < own_.size(); ++j) {
      const int64_t column = own_.columns[static_cast<size_t>(j)];
      theta.col(j) = problem_.cross.col(column).segment(begin, units.rows()) - products.col(column);
    }
    SolveCholesky(own_.factor, theta);
    for (int64_t i = 0; i < units.rows(); ++i) {
      const RowSketcher::Result& result = results[static_cast<size_t>(i)];
      const double step = result.factor * result.step;
      for (int64_t j = 0; j < own_.size(); ++j) {
        const int8_t level = NearestLevel(own_class, theta(i, j), step);
        const double unit = static_cast<double>(own_class.unit()) * level;
        const double error = (theta(i, j) - unit * step) / own_.inverse_factor(j, j);
        const int64_t rest = own_.size() - j - 1;
        theta.row(i).tail(rest) -= error * own_.inverse_factor.row(j).tail(rest);
        RowLevels(begin + i, levels)[own_.buckets[static_cast<size_t>(j)]] = level;
        units(i, own_.columns[static_cast<size_t>(j)]) = unit;
      }
    }
  }

  const AbsMaxMinLayout& layout_;
  const Problem& problem_;
  const absl::Span<const float> target_;
  const VectorXd energy_;
  const OwnColumns own_;
  // With which the largest weight is still a float.
  const double largest_scale_;
};

}  // namespace

std::unique_ptr<AbsMaxMinLinear> FitAbsMaxMinSite(const LinearSite& site,
                                                  std::vector<AbsMaxMinClass> classes,
                                                  uint64_t seed, absl::Span<const float> weights,
                                                  const SiteMoments& moments, ThreadPool& pool) {
  US_CHECK(static_cast<int64_t>(weights.size()) == site.num_weights());
  const Problem problem = WithPrior(moments, weights);
  const std::vector<float> target = Target(problem, weights, pool);
  const VectorXd energy = problem.input.diagonal();
  std::vector<uint8_t> column_classes = ClassesByImportance(classes, weights, energy);
  AbsMaxMinLayout layout =
      WithUnits(site, std::move(classes), seed, std::move(column_classes), target, energy);
  std::vector<int8_t> levels(static_cast<size_t>(site.rows * layout.num_buckets()));
  std::vector<float> scales(static_cast<size_t>(site.rows));
  const SiteFitter fitter(layout, problem, target);
  ForTiles(site.rows, pool, [&](int64_t begin, int64_t end) {
    fitter.FitRows(begin, end, levels.data(), scales.data());
  });
  return AbsMaxMinLinear::FromParts(site, std::move(layout), levels, scales);
}

}  // namespace ultrasketch
