#include "engine/compress/absmaxmin_fit.h"

#include <algorithm>
#include <cmath>

#include "gtest/gtest.h"

#include "engine/base/random.h"
#include "engine/codecs/absmaxmin/absmaxmin_sketch.h"

namespace ultrasketch {
namespace {

constexpr int64_t kRows = 70;
constexpr int64_t kCols = 48;

RowMajorMatrix Random(int64_t rows, int64_t cols, uint64_t stream) {
  RowMajorMatrix matrix(rows, cols);
  for (int64_t i = 0; i < rows * cols; ++i) {
    matrix.data()[i] = NormalDouble(23, stream, static_cast<uint64_t>(i));
  }
  return matrix;
}

LinearSite Site() {
  LinearSite site;
  site.name = "site";
  site.rows = kRows;
  site.cols = kCols;
  return site;
}

std::vector<float> ToFloats(const RowMajorMatrix& matrix) {
  return std::vector<float>(matrix.data(), matrix.data() + matrix.size());
}

SiteMoments MomentsOf(const RowMajorMatrix& x, const RowMajorMatrix& y) {
  SiteMoments moments;
  moments.input = x.transpose() * x;
  moments.cross = y.transpose() * x;
  moments.output = y.colwise().squaredNorm().transpose();
  return moments;
}

std::vector<AbsMaxMinClass> Mixed(int64_t num_own, int64_t shared_buckets) {
  return {{num_own, num_own, 1, 3, 0}, {kCols - num_own, shared_buckets, 2, 3, 0}};
}

std::vector<AbsMaxMinClass> Shared(int64_t buckets) { return {{kCols, buckets, 2, 4, 0}}; }

// The error of the decoded rows, each with the factor that suits it best, as if it were an outlay
// of nothing but the paper's insertion of the weights at one step.
double ErrorOfInsertion(const std::vector<AbsMaxMinClass>& classes, const RowMajorMatrix& weights,
                        const SiteMoments& moments) {
  const AbsMaxMinLayout layout(1, "site", classes, {});
  double least = 1;
  for (double step = 0.01; step < 2; step *= 1.2) {
    double change = 0;
    for (int64_t row = 0; row < kRows; ++row) {
      std::vector<float> dense(kCols);
      for (int64_t i = 0; i < kCols; ++i) dense[static_cast<size_t>(i)] = float(weights(row, i));
      std::vector<int8_t> levels(static_cast<size_t>(layout.num_buckets()));
      std::vector<float> units(kCols);
      InsertRow(layout, dense.data(), static_cast<float>(step), levels.data());
      QueryRow(layout, levels.data(), units.data());
      const Eigen::RowVectorXd u =
          Eigen::Map<const Eigen::RowVectorXf>(units.data(), kCols).cast<double>();
      const double norm = u * moments.input * u.transpose();
      const double product = u.dot(moments.cross.row(row));
      if (norm > 0) change -= product * product / norm;
    }
    least = std::min(least, 1 + change / moments.output.sum());
  }
  return least;
}

TEST(AbsMaxMinFitTest, IsBetterThanInsertingTheWeights) {
  const RowMajorMatrix x = Random(400, kCols, 1) * Random(kCols, kCols, 2);
  const RowMajorMatrix weights = Random(kRows, kCols, 3);
  const SiteMoments moments = MomentsOf(x, x * weights.transpose());
  ThreadPool pool(2);
  for (const auto& classes : {Mixed(24, 8), Shared(20)}) {
    const auto fit = FitAbsMaxMinSite(Site(), classes, 1, ToFloats(weights), moments, pool);
    const double error = RelativeOutputError(*fit, moments, pool);
    EXPECT_LT(error, ErrorOfInsertion(classes, weights, moments));
    EXPECT_GT(error, 0.0);
  }
}

TEST(AbsMaxMinFitTest, OwnBucketsOfManyBitsKeepNearlyEverything) {
  const RowMajorMatrix x = Random(400, kCols, 4);
  const RowMajorMatrix weights = Random(kRows, kCols, 5);
  const SiteMoments moments = MomentsOf(x, x * weights.transpose());
  ThreadPool pool(1);
  double last = 1;
  for (const int64_t bits : {2, 4, 6, 8}) {
    const auto fit =
        FitAbsMaxMinSite(Site(), {{kCols, kCols, 1, bits, 0}}, 1, ToFloats(weights), moments, pool);
    const double error = RelativeOutputError(*fit, moments, pool);
    EXPECT_LT(error, 0.4 * last) << bits;
    last = error;
  }
  EXPECT_LT(last, 1e-3);
}

TEST(AbsMaxMinFitTest, ImportantColumnsGetTheOwnBuckets) {
  RowMajorMatrix x = Random(400, kCols, 6);
  std::vector<int64_t> loud = {3, 17, 40, 41};
  for (const int64_t column : loud) x.col(column) *= 30;
  const RowMajorMatrix weights = Random(kRows, kCols, 7);
  const SiteMoments moments = MomentsOf(x, x * weights.transpose());
  ThreadPool pool(1);
  const auto fit = FitAbsMaxMinSite(Site(), Mixed(4, 8), 1, ToFloats(weights), moments, pool);
  for (int64_t column = 0; column < kCols; ++column) {
    const bool own = std::find(loud.begin(), loud.end(), column) != loud.end();
    EXPECT_EQ(fit->layout().column_classes()[static_cast<size_t>(column)], own ? 0 : 1) << column;
  }
}

TEST(AbsMaxMinFitTest, SurvivesSingularAndWildInputs) {
  const RowMajorMatrix weights = Random(kRows, kCols, 8);
  RowMajorMatrix dead = Random(100, kCols, 9);
  dead.leftCols(20).setZero();
  RowMajorMatrix duplicates = Random(100, kCols, 10);
  duplicates.rightCols(24) = duplicates.leftCols(24);
  RowMajorMatrix wild = Random(100, kCols, 11);
  wild.col(3) *= 1e12;
  wild.col(4) *= 1e-12;
  ThreadPool pool(1);
  for (const RowMajorMatrix& x : {Random(5, kCols, 12), dead, duplicates, wild,
                                  RowMajorMatrix(RowMajorMatrix::Zero(9, kCols)),
                                  RowMajorMatrix(1e150 * Random(50, kCols, 13)),
                                  RowMajorMatrix(1e-150 * Random(50, kCols, 13))}) {
    const SiteMoments moments = MomentsOf(x, x * weights.transpose());
    for (const auto& classes : {Mixed(24, 8), Shared(20), Mixed(1, 1)}) {
      const auto fit = FitAbsMaxMinSite(Site(), classes, 1, ToFloats(weights), moments, pool);
      for (const float scale : fit->Scales()) {
        EXPECT_TRUE(std::isfinite(scale));
        EXPECT_GE(scale, 0.0f);
      }
      const double error = RelativeOutputError(*fit, moments, pool);
      // NaN where there is nothing to give, or more than a double holds.
      EXPECT_TRUE(std::isnan(error) || error <= 1.001) << error;
      std::vector<float> decoded(static_cast<size_t>(kRows * kCols), NAN);
      fit->DecodeRows(0, kRows, decoded.data());
      for (const float weight : decoded) ASSERT_TRUE(std::isfinite(weight));
    }
  }
}

TEST(AbsMaxMinFitTest, ZeroWeightsDecodeToZero) {
  ThreadPool pool(1);
  const RowMajorMatrix weights = RowMajorMatrix::Zero(kRows, kCols);
  const RowMajorMatrix x = Random(60, kCols, 14);
  const auto fit = FitAbsMaxMinSite(Site(), Mixed(24, 8), 1, ToFloats(weights),
                                    MomentsOf(x, x * weights.transpose()), pool);
  std::vector<float> decoded(static_cast<size_t>(kRows * kCols), 1.0f);
  fit->DecodeRows(0, kRows, decoded.data());
  EXPECT_EQ(std::count(decoded.begin(), decoded.end(), 0.0f), kRows * kCols);
}

TEST(AbsMaxMinFitTest, DoesNotDependOnTheNumberOfThreads) {
  const RowMajorMatrix x = Random(200, kCols, 15);
  const RowMajorMatrix weights = Random(kRows, kCols, 16);
  const SiteMoments moments = MomentsOf(x, x * weights.transpose());
  ThreadPool one(1);
  ThreadPool many(5);
  const auto a = FitAbsMaxMinSite(Site(), Mixed(24, 8), 1, ToFloats(weights), moments, one);
  const auto b = FitAbsMaxMinSite(Site(), Mixed(24, 8), 1, ToFloats(weights), moments, many);
  std::vector<float> decoded_a(static_cast<size_t>(kRows * kCols));
  std::vector<float> decoded_b(decoded_a.size());
  a->DecodeRows(0, kRows, decoded_a.data());
  b->DecodeRows(0, kRows, decoded_b.data());
  EXPECT_EQ(decoded_a, decoded_b);
}

}  // namespace
}  // namespace ultrasketch
