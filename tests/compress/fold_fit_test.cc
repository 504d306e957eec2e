#include "engine/compress/fold_fit.h"

#include <cmath>

#include "Eigen/Cholesky"
#include "gtest/gtest.h"

#include "engine/base/random.h"

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

RowMajorMatrix Decode(const FoldFit& fit, int64_t rows, int64_t buckets) {
  RowMajorMatrix weights(rows, buckets);
  const int64_t row_bytes = (buckets + 7) / 8;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t bucket = 0; bucket < buckets; ++bucket) {
      const uint8_t byte = fit.bits[static_cast<size_t>(row * row_bytes + bucket / 8)];
      const double sign = (byte >> (bucket % 8) & 1) != 0 ? 1 : -1;
      weights(row, bucket) = sign * static_cast<double>(fit.scales[static_cast<size_t>(row)]);
    }
  }
  return weights;
}

void ExpectUsable(const FoldFit& fit, int64_t rows, int64_t buckets) {
  ASSERT_EQ(fit.scales.size(), static_cast<size_t>(rows));
  ASSERT_EQ(fit.bits.size(), static_cast<size_t>(rows * ((buckets + 7) / 8)));
  for (const float scale : fit.scales) {
    EXPECT_TRUE(std::isfinite(scale));
    EXPECT_GE(scale, 0.0f);
  }
  if (buckets % 8 == 0) return;
  for (int64_t row = 1; row <= rows; ++row) {
    EXPECT_EQ(fit.bits[static_cast<size_t>(row * ((buckets + 7) / 8) - 1)] >> (buckets % 8), 0);
  }
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
  const FoldFit fit = FitFold(moments, {}, pool);
  ExpectUsable(fit, kRows, kBuckets);
  EXPECT_LT((Decode(fit, kRows, kBuckets) - weights).cwiseAbs().maxCoeff(), 0.01);
  EXPECT_LT(RelativeOutputError(moments, fit), 1e-4);
}

TEST(FoldFitTest, IsBetterThanRoundingTheLeastSquaresWeights) {
  constexpr int64_t kRows = 24;
  constexpr int64_t kBuckets = 64;
  const RowMajorMatrix z = Random(500, kBuckets, 4) * Random(kBuckets, kBuckets, 5);
  const FoldMoments moments = MomentsOf(z, z * Random(kRows, kBuckets, 6).transpose());
  ThreadPool pool(1);
  const FoldFit fit = FitFold(moments, {}, pool);

  FoldFit rounded = fit;
  const RowMajorMatrix theta = moments.input.ldlt().solve(moments.cross.transpose()).transpose();
  std::fill(rounded.bits.begin(), rounded.bits.end(), uint8_t{0});
  for (int64_t row = 0; row < kRows; ++row) {
    Eigen::VectorXd signs(kBuckets);
    for (int64_t bucket = 0; bucket < kBuckets; ++bucket) {
      signs(bucket) = theta(row, bucket) < 0 ? -1 : 1;
      if (signs(bucket) > 0) {
        rounded.bits[static_cast<size_t>(row * kBuckets / 8 + bucket / 8)] |=
            static_cast<uint8_t>(1 << (bucket % 8));
      }
    }
    rounded.scales[static_cast<size_t>(row)] =
        static_cast<float>(moments.cross.row(row).dot(signs) / signs.dot(moments.input * signs));
  }
  EXPECT_LT(RelativeOutputError(moments, fit), 0.7 * RelativeOutputError(moments, rounded));
}

TEST(FoldFitTest, ErrorIsThatOfTheDecodedWeights) {
  const RowMajorMatrix z = Random(300, 20, 7);
  const RowMajorMatrix y = Random(300, 9, 8);
  const FoldMoments moments = MomentsOf(z, y);
  ThreadPool pool(1);
  const FoldFit fit = FitFold(moments, {}, pool);
  const double error = (z * Decode(fit, 9, 20).transpose() - y).squaredNorm() / y.squaredNorm();
  EXPECT_NEAR(RelativeOutputError(moments, fit), error, 1e-9);
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
      const FoldFit fit = FitFold(moments, options, pool);
      ExpectUsable(fit, kRows, kBuckets);
      EXPECT_LE(RelativeOutputError(moments, fit), 1.0 + 1e-6);
    }
  }
}

TEST(FoldFitTest, GivesZeroScalesWhenNothingIsToBeGiven) {
  FoldMoments moments = MomentsOf(Random(50, 8, 16), RowMajorMatrix::Zero(50, 3));
  ThreadPool pool(1);
  const FoldFit fit = FitFold(moments, {}, pool);
  for (const float scale : fit.scales) EXPECT_EQ(scale, 0.0f);
  EXPECT_TRUE(std::isnan(RelativeOutputError(moments, fit)));
}

TEST(FoldFitTest, DoesNotDependOnTheNumberOfThreads) {
  const FoldMoments moments = MomentsOf(Random(200, 40, 18), Random(200, 67, 19));
  ThreadPool one(1);
  ThreadPool many(5);
  const FoldFit a = FitFold(moments, {}, one);
  const FoldFit b = FitFold(moments, {}, many);
  EXPECT_EQ(a.bits, b.bits);
  EXPECT_EQ(a.scales, b.scales);
}

}  // namespace
}  // namespace ultrasketch
