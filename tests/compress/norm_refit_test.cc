#include "engine/compress/norm_refit.h"

#include <cmath>
#include <memory>
#include <vector>

#include "gtest/gtest.h"

#include "engine/base/random.h"
#include "engine/compress/cpu_fit_device.h"
#include "engine/compress/fold_encoder.h"
#include "engine/compress/site_moments.h"

namespace ultrasketch {
namespace {

constexpr int64_t kRows = 300;
constexpr int64_t kCols = 24;
constexpr int64_t kTokens = 200;

LinearSite TestSite() {
  LinearSite site;
  site.name = "model.layers.0.attention_input";
  site.rows = kRows;
  site.cols = kCols;
  return site;
}

double Uniform(uint64_t seed, int64_t index) {
  return 2.0 * static_cast<double>(HashColumn(seed, "uniform", index).key >> 11) * 0x1p-53 - 1.0;
}

// Some sketch of the site, whatever it is worth.
std::unique_ptr<FoldLinear> SomeSketch(ThreadPool& pool) {
  const LinearSite site = TestSite();
  std::vector<float> weights;
  for (int64_t i = 0; i < site.num_weights(); ++i) {
    weights.push_back(static_cast<float>(Uniform(1, i)));
  }
  const auto device = MakeCpuFitDevice(pool);
  const auto dense = device->LoadDense(site, weights, {});
  const auto moments = device->LoadMoments(site, **dense, WeightMoments(site, weights));
  return *FitFoldSite(site, {16, 1, false}, 5, weights, **moments, pool);
}

// Moments of random inputs, of which the last `num_dead` are always zero, and the outputs
// y = W' (factors * x).
SiteMoments MomentsOf(const EncodedLinear& encoded, const std::vector<double>& factors,
                      int64_t num_dead) {
  std::vector<float> decoded(static_cast<size_t>(kRows * kCols));
  encoded.DecodeRows(0, kRows, decoded.data());
  const RowMajorMatrix weights =
      Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(
          decoded.data(), kRows, kCols)
          .cast<double>();
  RowMajorMatrix x = RowMajorMatrix::Zero(kCols, kTokens);
  for (int64_t i = 0; i < kCols - num_dead; ++i) {
    for (int64_t t = 0; t < kTokens; ++t) x(i, t) = Uniform(2, i * kTokens + t);
  }
  RowMajorMatrix scaled = x;
  for (int64_t i = 0; i < kCols; ++i) scaled.row(i) *= factors[static_cast<size_t>(i)];
  const RowMajorMatrix y = weights * scaled;
  return {x * x.transpose(), y * x.transpose(), y.rowwise().squaredNorm()};
}

TEST(NormRefitTest, FindsTheFactorsOfTheChannels) {
  ThreadPool pool(2);
  const auto encoded = SomeSketch(pool);
  std::vector<double> factors;
  for (int64_t i = 0; i < kCols; ++i) factors.push_back(1 + 0.5 * Uniform(3, i));
  const std::vector<double> found =
      FitChannelFactors(*encoded, MomentsOf(*encoded, factors, 0), pool);
  ASSERT_EQ(found.size(), factors.size());
  for (size_t i = 0; i < factors.size(); ++i) EXPECT_NEAR(found[i], factors[i], 0.02) << i;
}

TEST(NormRefitTest, LeavesDeadChannelsAsTheyAre) {
  ThreadPool pool(2);
  const auto encoded = SomeSketch(pool);
  const std::vector<double> factors(kCols, 1.25);
  const std::vector<double> found =
      FitChannelFactors(*encoded, MomentsOf(*encoded, factors, 3), pool);
  for (int64_t i = 0; i < kCols; ++i) {
    EXPECT_NEAR(found[static_cast<size_t>(i)], i < kCols - 3 ? 1.25 : 1.0, 0.02) << i;
  }
}

TEST(NormRefitTest, KeepsEverythingWhereThereAreNoInputs) {
  ThreadPool pool(1);
  const auto encoded = SomeSketch(pool);
  const SiteMoments nothing = {RowMajorMatrix::Zero(kCols, kCols),
                               RowMajorMatrix::Zero(kRows, kCols), Eigen::VectorXd::Zero(kRows)};
  EXPECT_EQ(FitChannelFactors(*encoded, nothing, pool), std::vector<double>(kCols, 1.0));
}

TEST(NormRefitTest, DoesNotDependOnTheNumberOfThreads) {
  ThreadPool one(1);
  ThreadPool three(3);
  const auto encoded = SomeSketch(one);
  const SiteMoments moments = MomentsOf(*encoded, std::vector<double>(kCols, 0.75), 0);
  EXPECT_EQ(FitChannelFactors(*encoded, moments, one), FitChannelFactors(*encoded, moments, three));
}

}  // namespace
}  // namespace ultrasketch
