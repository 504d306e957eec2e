#include "engine/report/chart_scale.h"

#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::Pointwise;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(RoundTicksTest, EnclosesTheRangeWithRoundSteps) {
  EXPECT_THAT(RoundTicks(0, 10, 5).Values(), ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(RoundTicks(0, 0.93, 6).Values(),
              Pointwise(DoubleNear(1e-12), {0.0, 0.2, 0.4, 0.6, 0.8, 1.0}));
  EXPECT_THAT(RoundTicks(3, 97, 5).Values(), ElementsAre(0, 20, 40, 60, 80, 100));
  EXPECT_THAT(RoundTicks(-3, 4, 4).Values(), ElementsAre(-4, -2, 0, 2, 4));
  EXPECT_THAT(RoundTicks(-3, 4, 3).Values(), ElementsAre(-5, 0, 5));
  EXPECT_THAT(RoundTicks(0, 3, 16, /*whole_numbers=*/true).Values(), ElementsAre(0, 1, 2, 3));
}

TEST(LogTicksTest, ArePowersOfTenWithTheirTwoAndFivefoldWhereThereIsRoom) {
  EXPECT_THAT(LogTicks(0.9, 12, 12), Pointwise(DoubleNear(1e-9), {1.0, 2.0, 5.0, 10.0}));
  EXPECT_THAT(LogTicks(1, 1e6, 8),
              Pointwise(DoubleNear(1e-3), {1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6}));
  EXPECT_LE(LogTicks(1e-300, 1e300, 10).size(), 10u);
}

TEST(LogTicksTest, ANarrowRangeHasRoundNumbers) {
  EXPECT_THAT(LogTicks(9.1, 9.75, 8),
              Pointwise(DoubleNear(1e-9), {9.1, 9.2, 9.3, 9.4, 9.5, 9.6, 9.7}));
}

TEST(LogTicksTest, WhatHasNoLogarithmHasNoTicks) {
  EXPECT_TRUE(LogTicks(0, 1, 8).empty());
  EXPECT_TRUE(LogTicks(-1, 1, 8).empty());
  EXPECT_TRUE(LogTicks(1, kInfinity, 8).empty());
}

TEST(RoundTicksTest, HoldsItsLimitsForAllMagnitudes) {
  for (int exponent = -300; exponent <= 300; exponent += 7) {
    for (const double mantissa : {1.0, 1.49, 2.51, 4.99, 9.99}) {
      for (const double low_share : {0.0, 0.37, 0.96, -2.0}) {
        const double high = mantissa * std::pow(10.0, exponent);
        const double low = low_share * high;
        const AxisTicks ticks = RoundTicks(low, high, 6);
        const double slack = 1e-6 * (high - low);
        EXPECT_LE(ticks.low, low + slack);
        EXPECT_GE(ticks.high, high - slack);
        const size_t count = ticks.Values().size();
        EXPECT_GE(count, 2u);
        EXPECT_LE(count, 7u) << low << " to " << high;
      }
    }
  }
}

TEST(RoundTicksTest, GivesAnAxisForDegenerateRanges) {
  for (const auto& [low, high] : {std::pair(0.0, 0.0), std::pair(5.0, 5.0), std::pair(-2.5, -2.5),
                                  std::pair(kInfinity, -kInfinity), std::pair(0.0, kInfinity),
                                  std::pair(std::nan(""), 1.0)}) {
    for (const bool whole_numbers : {false, true}) {
      const AxisTicks ticks = RoundTicks(low, high, 5, whole_numbers);
      EXPECT_LT(ticks.low, ticks.high);
      EXPECT_GT(ticks.step, 0);
      EXPECT_LE(ticks.Values().size(), 6u);
    }
  }
}

TEST(TickLabelTest, HasTheDecimalsOfTheStep) {
  EXPECT_EQ(TickLabel(0.30000000000000004, 0.1), "0.3");
  EXPECT_EQ(TickLabel(0.25, 0.05), "0.25");
  EXPECT_EQ(TickLabel(20, 20), "20");
  EXPECT_EQ(TickLabel(-1e-17, 0.2), "0.0");
}

TEST(ShortNumberTest, HasThreeDigits) {
  EXPECT_EQ(ShortNumber(0.188), "0.188");
  EXPECT_EQ(ShortNumber(1.2861), "1.29");
  EXPECT_EQ(ShortNumber(33.57), "33.6");
  EXPECT_EQ(ShortNumber(243.8), "244");
  EXPECT_EQ(ShortNumber(27600), "27600");
  EXPECT_EQ(ShortNumber(0), "0.00");
  EXPECT_EQ(ShortNumber(-0.00123), "-0.00123");
  EXPECT_EQ(ShortNumber(1.5e-7), "1.50e-07");
  EXPECT_EQ(ShortNumber(std::nan("")), "–");
  EXPECT_EQ(ShortNumber(kInfinity), "–");
}

}  // namespace
}  // namespace ultrasketch
