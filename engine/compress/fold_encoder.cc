#include "engine/compress/fold_encoder.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/status.h"

namespace ultrasketch {
namespace {

constexpr int64_t kRowsPerTask = 64;

// Weight of the prior that inputs are uncorrelated, relative to the mean energy of an input. It
// decides where the calibration text says nothing.
constexpr double kRelativePrior = 3e-2;

// Adds `weight` tokens' worth of uncorrelated inputs of unit variance for which y = W x.
void AddPrior(const LinearSite& site, absl::Span<const float> weights, double weight,
              SiteMoments& moments) {
  moments.input.diagonal().array() += weight;
  for (int64_t row = 0; row < site.rows; ++row) {
    const float* row_weights = weights.data() + row * site.cols;
    for (int64_t column = 0; column < site.cols; ++column) {
      moments.cross(row, column) += weight * static_cast<double>(row_weights[column]);
    }
  }
}

// How much of the outputs a column carries: its energy times that of its weights.
std::vector<double> ColumnImportance(const LinearSite& site, absl::Span<const float> weights,
                                     const RowMajorMatrix& input) {
  std::vector<double> importance(static_cast<size_t>(site.cols), 0.0);
  for (int64_t row = 0; row < site.rows; ++row) {
    const float* row_weights = weights.data() + row * site.cols;
    for (int64_t column = 0; column < site.cols; ++column) {
      importance[static_cast<size_t>(column)] +=
          static_cast<double>(row_weights[column]) * row_weights[column];
    }
  }
  for (int64_t column = 0; column < site.cols; ++column) {
    importance[static_cast<size_t>(column)] *= input(column, column);
  }
  return importance;
}

// Columns of `in` [n, cols] folded to [n, buckets].
RowMajorMatrix FoldColumns(const FoldLayout& layout, const RowMajorMatrix& in) {
  RowMajorMatrix out = RowMajorMatrix::Zero(in.rows(), layout.buckets());
  for (int64_t row = 0; row < in.rows(); ++row) {
    for (int64_t column = 0; column < in.cols(); ++column) {
      const auto index = static_cast<size_t>(column);
      out(row, layout.bucket_of_column()[index]) +=
          static_cast<double>(layout.sign_of_column()[index]) * in(row, column);
    }
  }
  return out;
}

FoldMoments FoldTheMoments(const FoldLayout& layout, const SiteMoments& moments) {
  FoldMoments folded;
  folded.input = FoldColumns(layout, FoldColumns(layout, moments.input).transpose());
  folded.cross = FoldColumns(layout, moments.cross);
  folded.output = moments.output;
  return folded;
}

}  // namespace

absl::StatusOr<std::vector<float>> ReadSiteWeights(const LinearSite& site,
                                                   const TensorSource& source) {
  std::vector<float> weights(static_cast<size_t>(site.num_weights()));
  int64_t first_row = 0;
  for (const SiteMember& member : site.members) {
    const std::string name = member.name + ".weight";
    US_ASSIGN_OR_RETURN(const TensorView view,
                        GetTensor(source, name, {}, {member.rows, site.cols}));
    US_RETURN_IF_ERROR(CheckFinite(source, name, view));
    CopyToFloat(view, 0, member.rows * site.cols, weights.data() + first_row * site.cols);
    first_row += member.rows;
  }
  US_CHECK(first_row == site.rows);
  return weights;
}

FoldLayout ChooseFoldLayout(const LinearSite& site, const FoldShape& shape, uint64_t seed,
                            absl::Span<const double> column_importance) {
  std::vector<FoldClass> classes = EvenFoldClasses(site.cols, shape.buckets);
  std::vector<uint8_t> column_classes;
  if (shape.ranked && classes.size() > 1) {
    US_CHECK(static_cast<int64_t>(column_importance.size()) == site.cols);
    std::vector<int64_t> order(column_importance.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return column_importance[static_cast<size_t>(a)] > column_importance[static_cast<size_t>(b)];
    });
    column_classes.resize(column_importance.size());
    size_t place = 0;
    for (size_t index = 0; index < classes.size(); ++index) {
      for (int64_t i = 0; i < classes[index].num_columns; ++i, ++place) {
        column_classes[static_cast<size_t>(order[place])] = static_cast<uint8_t>(index);
      }
    }
  }
  return FoldLayout(seed, site.name, std::move(classes), std::move(column_classes));
}

void SetOutputMoments(const LinearSite& site, absl::Span<const float> weights,
                      const RowMajorMatrix& dense_input, const RowMajorMatrix& dense_cross,
                      SiteMoments& moments, ThreadPool& pool) {
  using FloatMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Eigen::Map<const FloatMatrix> matrix(weights.data(), site.rows, site.cols);
  moments.cross.resize(site.rows, site.cols);
  moments.output.resize(site.rows);
  pool.ParallelFor(site.rows, kRowsPerTask, [&](int64_t begin, int64_t end, int) {
    for (int64_t first = begin; first < end; first += kRowsPerTask) {
      const int64_t count = std::min(kRowsPerTask, end - first);
      const RowMajorMatrix rows = matrix.middleRows(first, count).cast<double>();
      moments.cross.middleRows(first, count).noalias() = rows * dense_cross;
      moments.output.segment(first, count) =
          (rows * dense_input).cwiseProduct(rows).rowwise().sum();
    }
  });
}

SiteMoments WeightMoments(const LinearSite& site, absl::Span<const float> weights) {
  SiteMoments moments;
  moments.input.setZero(site.cols, site.cols);
  moments.cross.setZero(site.rows, site.cols);
  AddPrior(site, weights, 1.0, moments);
  moments.output = moments.cross.rowwise().squaredNorm();
  return moments;
}

std::unique_ptr<FoldLinear> FitFoldSite(const LinearSite& site, const FoldShape& shape,
                                        uint64_t seed, absl::Span<const float> weights,
                                        const SiteMoments& moments, ThreadPool& pool,
                                        double& relative_output_error) {
  SiteMoments damped = moments;
  AddPrior(site, weights, kRelativePrior * moments.input.trace() / static_cast<double>(site.cols),
           damped);
  FoldLayout layout =
      ChooseFoldLayout(site, shape, seed, ColumnImportance(site, weights, damped.input));
  const FoldFit fit = FitFold(FoldTheMoments(layout, damped), {}, pool);
  relative_output_error = RelativeOutputError(FoldTheMoments(layout, moments), fit);
  return FoldLinear::FromParts(site, std::move(layout), fit.bits, fit.scales);
}

double RelativeWeightError(const EncodedLinear& encoded, absl::Span<const float> weights,
                           ThreadPool& pool) {
  const int64_t rows = encoded.site().rows;
  const int64_t cols = encoded.site().cols;
  std::vector<double> errors(static_cast<size_t>(rows));
  std::vector<double> energies(static_cast<size_t>(rows));
  pool.ParallelFor(rows, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<float> decoded(static_cast<size_t>(cols));
    for (int64_t row = begin; row < end; ++row) {
      encoded.DecodeRows(row, 1, decoded.data());
      const float* expected = weights.data() + row * cols;
      double error = 0;
      double energy = 0;
      for (int64_t column = 0; column < cols; ++column) {
        const double difference =
            static_cast<double>(decoded[static_cast<size_t>(column)]) - expected[column];
        error += difference * difference;
        energy += static_cast<double>(expected[column]) * expected[column];
      }
      errors[static_cast<size_t>(row)] = error;
      energies[static_cast<size_t>(row)] = energy;
    }
  });
  const double energy = std::accumulate(energies.begin(), energies.end(), 0.0);
  return energy > 0 ? std::accumulate(errors.begin(), errors.end(), 0.0) / energy
                    : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace ultrasketch
