#include "engine/compress/site_moments.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "engine/base/check.h"
#include "engine/base/status.h"

namespace ultrasketch {
namespace {

using FloatMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr int64_t kRowsPerTask = 64;

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

void SetOutputMoments(const LinearSite& site, absl::Span<const float> weights,
                      const RowMajorMatrix& dense_input, const RowMajorMatrix& dense_cross,
                      SiteMoments& moments, ThreadPool& pool) {
  const Eigen::Map<const FloatMatrix> matrix(weights.data(), site.rows, site.cols);
  moments.cross.resize(site.rows, site.cols);
  moments.output.resize(site.rows);
  pool.ParallelFor(site.rows, kRowsPerTask, [&](int64_t begin, int64_t end, int) {
    for (int64_t first = begin; first < end; first += kRowsPerTask) {
      const int64_t count = std::min(kRowsPerTask, end - first);
      const RowMajorMatrix rows = matrix.middleRows(first, count).cast<double>();
      MultiplyAdd(count, site.cols, site.cols, 1.0, rows.data(), site.cols, dense_cross.data(),
                  site.cols, 0.0, moments.cross.data() + first * site.cols, site.cols);
      RowMajorMatrix products(count, site.cols);
      MultiplyAdd(count, site.cols, site.cols, 1.0, rows.data(), site.cols, dense_input.data(),
                  site.cols, 0.0, products.data(), site.cols);
      moments.output.segment(first, count) = products.cwiseProduct(rows).rowwise().sum();
    }
  });
}

SiteMoments WeightMoments(const LinearSite& site, absl::Span<const float> weights) {
  const Eigen::Map<const FloatMatrix> matrix(weights.data(), site.rows, site.cols);
  SiteMoments moments;
  moments.input.setIdentity(site.cols, site.cols);
  moments.cross = matrix.cast<double>();
  moments.output = moments.cross.rowwise().squaredNorm();
  return moments;
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

double RelativeOutputError(const EncodedLinear& encoded, const SiteMoments& moments,
                           ThreadPool& pool) {
  const int64_t rows = encoded.site().rows;
  const int64_t cols = encoded.site().cols;
  const double total = moments.output.sum();
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  if (!(total > 0 && std::isfinite(total))) return kNan;
  Eigen::VectorXd changes(rows);
  pool.ParallelFor(rows, kRowsPerTask, [&](int64_t begin, int64_t end, int) {
    std::vector<float> decoded(static_cast<size_t>(std::min(end - begin, kRowsPerTask) * cols));
    for (int64_t first = begin; first < end; first += kRowsPerTask) {
      const int64_t count = std::min(kRowsPerTask, end - first);
      encoded.DecodeRows(first, count, decoded.data());
      const RowMajorMatrix weights =
          Eigen::Map<const FloatMatrix>(decoded.data(), count, cols).cast<double>();
      RowMajorMatrix products = moments.cross.middleRows(first, count);
      MultiplyAdd(count, cols, cols, 1.0, weights.data(), cols, moments.input.data(), cols, -2.0,
                  products.data(), cols);
      changes.segment(first, count) = products.cwiseProduct(weights).rowwise().sum();
    }
  });
  const double error = (total + changes.sum()) / total;
  return std::isfinite(error) ? std::max(0.0, error) : kNan;
}

}  // namespace ultrasketch
