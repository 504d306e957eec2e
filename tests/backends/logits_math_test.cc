#include "engine/backends/sampling/logits_math.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

#include "engine/base/random.h"

namespace ultrasketch {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(ExpNonPositiveTest, IsAccurateOverItsRange) {
  double worst = 0;
  for (double x = -87; x <= 0; x += 1.0 / 4096) {
    const auto argument = static_cast<float>(x);
    const double exact = std::exp(double{argument});
    worst = std::max(worst, std::fabs(double{ExpNonPositive(argument)} / exact - 1));
  }
  EXPECT_LT(worst, 3e-7);
  EXPECT_EQ(ExpNonPositive(0.0f), 1.0f);
  EXPECT_EQ(ExpNonPositive(-0.0f), 1.0f);
  EXPECT_EQ(ExpNonPositive(-87.1f), 0.0f);
  EXPECT_EQ(ExpNonPositive(-3e38f), 0.0f);
  EXPECT_EQ(ExpNonPositive(-kInfinity), 0.0f);
}

TEST(ComputeWeightsTest, AgreesWithTheScalarFunctionToTheBit) {
  for (const size_t size : {1u, 7u, 8u, 511u, 512u, 513u, 2000u}) {
    std::vector<float> logits(size);
    for (size_t i = 0; i < size; ++i) logits[i] = static_cast<float>(NormalDouble(1, size, i)) * 9;
    const float maximum = *std::max_element(logits.begin(), logits.end());
    std::vector<float> weights;
    std::vector<double> sums;
    const double total = ComputeWeights(logits, maximum, 0.7f, 1e-3f, weights, sums);
    ASSERT_EQ(weights.size(), size);
    double expected_total = 0;
    for (size_t i = 0; i < size; ++i) {
      const float weight = ExpNonPositive((logits[i] - maximum) * 0.7f);
      EXPECT_EQ(weights[i], weight >= 1e-3f ? weight : 0.0f);
      expected_total += weights[i];
    }
    EXPECT_NEAR(total, expected_total, 1e-12 * expected_total);
    double sum_of_sums = 0;
    for (const double sum : sums) sum_of_sums += sum;
    EXPECT_NEAR(total, sum_of_sums, 1e-12 * total);
  }
}

std::vector<Candidate> FullySorted(const std::vector<float>& logits) {
  std::vector<Candidate> all;
  for (size_t i = 0; i < logits.size(); ++i) all.push_back({logits[i], static_cast<int32_t>(i)});
  std::sort(all.begin(), all.end());
  return all;
}

// Rows with many ties, ascending, descending, constant, with impossible tokens.
std::vector<std::vector<float>> AwkwardRows() {
  std::vector<std::vector<float>> rows;
  for (const size_t size : {1u, 2u, 65u, 1000u}) {
    std::vector<std::vector<float>> shapes(6, std::vector<float>(size));
    for (size_t i = 0; i < size; ++i) {
      const auto normal = static_cast<float>(NormalDouble(2, size, i));
      shapes[0][i] = normal * 3;
      shapes[1][i] = std::round(normal * 2);
      shapes[2][i] = static_cast<float>(i) * 0.01f;
      shapes[3][i] = static_cast<float>(i) * -0.01f;
      shapes[4][i] = 1.5f;
      shapes[5][i] = i % 3 == 0 ? normal : -kInfinity;
    }
    rows.insert(rows.end(), shapes.begin(), shapes.end());
  }
  return rows;
}

TEST(SelectMostLikelyTest, AgreesWithAFullSort) {
  for (const std::vector<float>& logits : AwkwardRows()) {
    const std::vector<Candidate> sorted = FullySorted(logits);
    for (const size_t count : {0u, 1u, 2u, 5u, 63u, 64u, 65u, 500u, 999u, 1000u, 4000u}) {
      std::vector<Candidate> selected = {{0, 0}};
      SelectMostLikely(logits, count, selected);
      ASSERT_EQ(selected.size(), std::min(count, logits.size()));
      for (size_t i = 0; i < selected.size(); ++i) {
        EXPECT_EQ(selected[i].id, sorted[i].id);
        EXPECT_EQ(selected[i].logit, sorted[i].logit);
      }
    }
  }
}

TEST(KeepTopPTest, KeepsTheSmallestSufficientPrefixOfASort) {
  for (const std::vector<float>& logits : AwkwardRows()) {
    const std::vector<Candidate> sorted = FullySorted(logits);
    for (const float inverse_temperature : {0.1f, 1.0f, 20.0f}) {
      for (const double p : {0.0, 1e-9, 0.1, 0.5, 0.9, 0.999, 1.0}) {
        const float maximum = sorted.front().logit;
        std::vector<float> weights;
        std::vector<double> sums;
        const double all = ComputeWeights(logits, maximum, inverse_temperature, 0, weights, sums);
        const std::vector<float> before = weights;
        const double kept = KeepTopP(logits, maximum, inverse_temperature, p * all, weights, sums);
        double mass = 0;
        bool inside = true;
        for (size_t i = 0; i < sorted.size(); ++i) {
          const auto id = static_cast<size_t>(sorted[i].id);
          // Where the limit falls onto a token to within rounding, either side is right.
          if (std::fabs(mass - p * all) > 1e-9 * all) inside = i == 0 || mass < p * all;
          if (std::fabs(mass - p * all) > 1e-9 * all || i == 0) {
            EXPECT_EQ(weights[id], inside ? before[id] : 0.0f) << "rank " << i << " p " << p;
          }
          mass += double{before[id]};
        }
        double sum = 0;
        for (const float weight : weights) sum += double{weight};
        EXPECT_NEAR(kept, sum, 1e-12 * sum);
        EXPECT_GE(kept, p * all * (1 - 1e-9));
      }
    }
  }
}

TEST(CheckedMaximumTest, FindsTheMaximumOfAnySigns) {
  EXPECT_EQ(*CheckedMaximum({-3.0f, -1.5f, -2.0f}), -1.5f);
  EXPECT_EQ(*CheckedMaximum({-3.0f, 0.25f, -kInfinity}), 0.25f);
  EXPECT_EQ(*CheckedMaximum({std::numeric_limits<float>::max()}),
            std::numeric_limits<float>::max());
  EXPECT_EQ(*CheckedMaximum({std::numeric_limits<float>::lowest()}),
            std::numeric_limits<float>::lowest());
  EXPECT_EQ(*CheckedMaximum({-std::numeric_limits<float>::denorm_min(), -1.0f}),
            -std::numeric_limits<float>::denorm_min());
}

}  // namespace
}  // namespace ultrasketch
