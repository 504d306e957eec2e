#include "engine/compress/norm_refit.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "Eigen/Cholesky"

#include "engine/compress/products.h"

namespace ultrasketch {
namespace {

constexpr int64_t kRowsAtOnce = 256;

}  // namespace

std::vector<double> FitChannelFactors(const EncodedLinear& encoded, const SiteMoments& moments,
                                      ThreadPool& pool) {
  const int64_t rows = encoded.site().rows;
  const int64_t cols = encoded.site().cols;
  // The normal equations: (H o W'^T W') g = diag(W'^T G), o elementwise.
  RowMajorMatrix normal = RowMajorMatrix::Zero(cols, cols);
  Eigen::VectorXd right = Eigen::VectorXd::Zero(cols);
  std::vector<float> decoded(static_cast<size_t>(std::min(rows, kRowsAtOnce) * cols));
  for (int64_t first = 0; first < rows; first += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, rows - first);
    encoded.DecodeRows(first, count, decoded.data());
    AddSelfProducts(decoded.data(), cols, count, normal.data(), pool);
    const Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>
        weights(decoded.data(), count, cols);
    right += weights.cast<double>()
                 .cwiseProduct(moments.cross.middleRows(first, count))
                 .colwise()
                 .sum()
                 .transpose();
  }
  CompleteSymmetric(cols, normal.data());
  normal = normal.cwiseProduct(moments.input).eval();
  const double damping = kRelativeChannelDamping * normal.diagonal().mean();
  std::vector<double> factors(static_cast<size_t>(cols), 1.0);
  if (!(damping > 0) || !std::isfinite(damping)) return factors;
  normal.diagonal().array() += damping;
  right.array() += damping;
  const Eigen::VectorXd solution = normal.ldlt().solve(right);
  if (!solution.allFinite()) return factors;
  std::copy_n(solution.data(), cols, factors.begin());
  return factors;
}

}  // namespace ultrasketch
