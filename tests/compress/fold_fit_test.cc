#include "engine/compress/fold_fit.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "Eigen/Cholesky"
#include "gtest/gtest.h"

#include "engine/base/random.h"
#include "engine/codecs/fold/fold_layout.h"

namespace ultrasketch {
namespace {

RowMajorMatrix Random(int64_t rows, int64_t cols, uint64_t stream) {
  RowMajorMatrix matrix(rows, cols);
  for (int64_t i = 0; i < rows * cols; ++i) {
    matrix.data()[i] = NormalDouble(17, stream, static_cast<uint64_t>(i));
  }
  return matrix;
}

// Moments of tokens z [tokens, buckets] and outputs y [tokens, rows].
FoldMoments MomentsOf(const RowMajorMatrix& z, const RowMajorMatrix& y) {
  FoldMoments moments;
  moments.input = z.transpose() * z;
  moments.cross = y.transpose() * z;
  moments.output = y.colwise().squaredNorm().transpose();
  return moments;
}

RowMajorMatrix Decode(const FoldFit& fit, const std::vector<uint8_t>& planes, int64_t rows) {
  const auto groups = static_cast<int64_t>(planes.size());
  RowMajorMatrix weights(rows, groups);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t group = 0; group < groups; ++group) {
      weights(row, group) = static_cast<double>(fit.scales[static_cast<size_t>(row)]) *
                            FoldUnit(planes[static_cast<size_t>(group)]) *
                            fit.levels[static_cast<size_t>(row * groups + group)];
    }
  }
  return weights;
}

// |y' - y|^2 / |y|^2
double RelativeError(const FoldMoments& moments, const RowMajorMatrix& weights) {
  const double change = (weights * moments.input - 2 * moments.cross).cwiseProduct(weights).sum();
  return 1 + change / moments.output.sum();
}

double RelativeError(const FoldMoments& moments, const FoldFit& fit,
                     const std::vector<uint8_t>& planes) {
  return RelativeError(moments, Decode(fit, planes, moments.cross.rows()));
}

void ExpectUsable(const FoldFit& fit, const std::vector<uint8_t>& planes, int64_t rows) {
  ASSERT_EQ(fit.scales.size(), static_cast<size_t>(rows));
  ASSERT_EQ(fit.levels.size(), static_cast<size_t>(rows) * planes.size());
  for (const float scale : fit.scales) {
    EXPECT_TRUE(std::isfinite(scale));
    EXPECT_GE(scale, 0.0f);
  }
  for (size_t i = 0; i < fit.levels.size(); ++i) {
    EXPECT_EQ(fit.levels[i] & 1, 1);
    EXPECT_LT(std::abs(fit.levels[i]), 1 << planes[i % planes.size()]);
  }
}

std::vector<uint8_t> OnePlane(int64_t groups) {
  return std::vector<uint8_t>(static_cast<size_t>(groups), 1);
}

TEST(FoldFitTest, RecoversWeightsThatAreSignsTimesAScale) {
  constexpr int64_t kRows = 19;
  constexpr int64_t kBuckets = 37;
  RowMajorMatrix weights = Random(kRows, kBuckets, 1);
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t bucket = 0; bucket < kBuckets; ++bucket) {
      weights(row, bucket) =
          weights(row, bucket) < 0 ? -0.25 * double(row + 1) : 0.25 * double(row + 1);
    }
  }
  // Correlated inputs.
  const RowMajorMatrix z = Random(400, kBuckets, 2) * Random(kBuckets, kBuckets, 3);
  const FoldMoments moments = MomentsOf(z, z * weights.transpose());
  ThreadPool pool(2);
  const FoldFit fit = FitFold(moments, OnePlane(kBuckets), {}, pool);
  ExpectUsable(fit, OnePlane(kBuckets), kRows);
  EXPECT_LT((Decode(fit, OnePlane(kBuckets), kRows) - weights).cwiseAbs().maxCoeff(), 0.01);
  EXPECT_LT(RelativeError(moments, fit, OnePlane(kBuckets)), 1e-4);
}

TEST(FoldFitTest, IsBetterThanRoundingTheLeastSquaresWeights) {
  constexpr int64_t kRows = 24;
  constexpr int64_t kBuckets = 64;
  const RowMajorMatrix z = Random(500, kBuckets, 4) * Random(kBuckets, kBuckets, 5);
  const FoldMoments moments = MomentsOf(z, z * Random(kRows, kBuckets, 6).transpose());
  ThreadPool pool(1);
  for (const uint8_t num_planes : {1, 2, 3}) {
    const std::vector<uint8_t> planes(kBuckets, num_planes);
    const double limit = (1 << num_planes) - 1;
    const double unit = static_cast<double>(FoldUnit(num_planes));
    const RowMajorMatrix theta = moments.input.ldlt().solve(moments.cross.transpose()).transpose();
    RowMajorMatrix rounded = theta;
    for (int64_t row = 0; row < kRows; ++row) {
      const double step = unit * theta.row(row).cwiseAbs().mean();
      for (int64_t group = 0; group < kBuckets; ++group) {
        const double level = 2 * std::floor(theta(row, group) / step / 2) + 1;
        rounded(row, group) = unit * std::clamp(level, -limit, limit);
      }
      rounded.row(row) *= moments.cross.row(row).dot(rounded.row(row)) /
                          (rounded.row(row) * moments.input * rounded.row(row).transpose())(0);
    }
    const FoldFit fit = FitFold(moments, planes, {}, pool);
    EXPECT_LT(RelativeError(moments, fit, planes), 0.7 * RelativeError(moments, rounded));
  }
}

TEST(FoldFitTest, MorePlanesLeaveLess) {
  const RowMajorMatrix z = Random(300, 24, 7);
  const FoldMoments moments = MomentsOf(z, z * Random(40, 24, 8).transpose());
  ThreadPool pool(1);
  double last = 1;
  for (uint8_t num_planes = 1; num_planes <= kMaxFoldPlanes; ++num_planes) {
    const std::vector<uint8_t> planes(24, num_planes);
    const double error = RelativeError(moments, FitFold(moments, planes, {}, pool), planes);
    EXPECT_LT(error, 0.5 * last) << int{num_planes};
    last = error;
  }
  // Half of the groups finer.
  std::vector<uint8_t> mixed = OnePlane(24);
  std::fill(mixed.begin() + 12, mixed.end(), uint8_t{3});
  const double error = RelativeError(moments, FitFold(moments, mixed, {}, pool), mixed);
  const auto even = [&](uint8_t num_planes) {
    const std::vector<uint8_t> planes(24, num_planes);
    return RelativeError(moments, FitFold(moments, planes, {}, pool), planes);
  };
  EXPECT_LT(error, even(1));
  EXPECT_GT(error, even(3));
}

TEST(FoldFitTest, SurvivesSingularInputs) {
  constexpr int64_t kRows = 5;
  constexpr int64_t kBuckets = 30;
  RowMajorMatrix few_tokens = Random(7, kBuckets, 9);
  RowMajorMatrix dead = Random(100, kBuckets, 10);
  dead.leftCols(11).setZero();
  RowMajorMatrix duplicates = Random(100, kBuckets, 11);
  duplicates.rightCols(15) = duplicates.leftCols(15);
  RowMajorMatrix opposite = Random(100, kBuckets, 12);
  opposite.rightCols(15) = -opposite.leftCols(15);
  RowMajorMatrix wild = Random(100, kBuckets, 13);
  wild.col(3) *= 1e12;
  wild.col(4) *= 1e-12;
  const RowMajorMatrix none = RowMajorMatrix::Zero(100, kBuckets);
  const RowMajorMatrix one_token = Random(1, kBuckets, 14);
  ThreadPool pool(1);
  for (const RowMajorMatrix& z : {few_tokens, dead, duplicates, opposite, wild, none, one_token}) {
    const FoldMoments moments = MomentsOf(z, Random(z.rows(), kRows, 15));
    for (const double damping : {0.0, 1e-3}) {
      FoldFitOptions options;
      options.relative_damping = damping;
      std::vector<uint8_t> planes = OnePlane(kBuckets);
      std::fill_n(planes.begin(), 7, uint8_t{4});
      const FoldFit fit = FitFold(moments, planes, options, pool);
      ExpectUsable(fit, planes, kRows);
      EXPECT_LE(RelativeError(moments, fit, planes), 1.0 + 1e-6);
    }
  }
}

TEST(FoldFitTest, GivesZeroScalesWhenNothingIsToBeGiven) {
  FoldMoments moments = MomentsOf(Random(50, 8, 16), RowMajorMatrix::Zero(50, 3));
  ThreadPool pool(1);
  const FoldFit fit = FitFold(moments, OnePlane(8), {}, pool);
  ExpectUsable(fit, OnePlane(8), 3);
  for (const float scale : fit.scales) EXPECT_EQ(scale, 0.0f);
}

TEST(FoldFitTest, DoesNotDependOnTheNumberOfThreads) {
  const FoldMoments moments = MomentsOf(Random(200, 40, 18), Random(200, 67, 19));
  ThreadPool one(1);
  ThreadPool many(5);
  const FoldFit a = FitFold(moments, OnePlane(40), {}, one);
  const FoldFit b = FitFold(moments, OnePlane(40), {}, many);
  EXPECT_EQ(a.levels, b.levels);
  EXPECT_EQ(a.scales, b.scales);
}

}  // namespace
}  // namespace ultrasketch
