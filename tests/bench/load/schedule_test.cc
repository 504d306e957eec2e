#include "engine/bench/load/schedule.h"

#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/bench/load/arrivals.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;

// All requests of a plan of an open loop.
std::vector<ScheduledRequest> All(const SchedulePlan& plan) {
  Schedule schedule(plan);
  std::vector<ScheduledRequest> all;
  while (const auto request = schedule.Next(0)) all.push_back(*request);
  return all;
}

TEST(ArrivalsTest, ConstantOnesAreEvenlySpacedFromZeroOn) {
  Arrivals arrivals(ArrivalProcess::kConstant, 4, 0);
  EXPECT_EQ(arrivals.Next(), 0);
  EXPECT_EQ(arrivals.Next(), 0.25);
  EXPECT_EQ(arrivals.Next(), 0.5);
}

TEST(ArrivalsTest, PoissonOnesHaveExponentialIntervalsOfTheRate) {
  constexpr int kCount = 100'000;
  Arrivals arrivals(ArrivalProcess::kPoisson, 50, 3);
  double last = 0;
  double sum_of_squares = 0;
  int longer_than_mean = 0;
  for (int i = 0; i < kCount; ++i) {
    const double next = arrivals.Next();
    ASSERT_GE(next, last);
    sum_of_squares += (next - last) * (next - last);
    longer_than_mean += next - last > 0.02 ? 1 : 0;
    last = next;
  }
  // The mean interval is 20 ms, its square's mean 2 * (20 ms)^2, and 1/e of them are longer.
  EXPECT_NEAR(last / kCount, 0.02, 0.02 * 0.015);
  EXPECT_NEAR(sum_of_squares / kCount, 2 * 0.02 * 0.02, 2 * 0.02 * 0.02 * 0.04);
  EXPECT_NEAR(longer_than_mean, kCount / std::exp(1.0), 1000);
}

TEST(ArrivalsTest, TheSameSeedGivesTheSameTimes) {
  Arrivals a(ArrivalProcess::kPoisson, 1, 3);
  Arrivals b(ArrivalProcess::kPoisson, 1, 3);
  Arrivals c(ArrivalProcess::kPoisson, 1, 4);
  const double first = a.Next();
  EXPECT_EQ(first, b.Next());
  EXPECT_NE(first, c.Next());
}

TEST(ScheduleTest, AClosedLoopSendsWhenItIsAskedTo) {
  SchedulePlan plan;
  plan.warm_up_requests = 1;
  plan.measured_requests = 2;
  Schedule schedule(plan);
  const auto first = schedule.Next(0.5);
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->index, 0);
  EXPECT_EQ(first->intended_seconds, 0.5);
  EXPECT_FALSE(first->is_measured);
  const auto second = schedule.Next(3);
  ASSERT_TRUE(second.has_value());
  EXPECT_TRUE(second->is_measured);
  EXPECT_TRUE(schedule.Next(4).has_value());
  EXPECT_FALSE(schedule.Next(4).has_value());
}

TEST(ScheduleTest, TheDurationBeginsWithTheFirstMeasuredRequest) {
  SchedulePlan plan;
  plan.warm_up_requests = 1;
  plan.duration_seconds = 2;
  Schedule schedule(plan);
  EXPECT_TRUE(schedule.Next(0).has_value());
  EXPECT_TRUE(schedule.Next(100).has_value());
  EXPECT_TRUE(schedule.Next(101.9).has_value());
  EXPECT_FALSE(schedule.Next(102).has_value());
}

TEST(ScheduleTest, AnOpenLoopDoesNotWaitForAnything) {
  SchedulePlan plan;
  plan.loop = LoadLoop::kOpen;
  plan.rate = 10;
  plan.arrivals = ArrivalProcess::kConstant;
  plan.duration_seconds = 0.35;
  const std::vector<ScheduledRequest> all = All(plan);
  ASSERT_EQ(all.size(), 4u);
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i].index, static_cast<int64_t>(i));
    EXPECT_DOUBLE_EQ(all[i].intended_seconds, 0.1 * static_cast<double>(i));
  }
}

TEST(ScheduleTest, ATraceIsPlayedToItsEnd) {
  SchedulePlan plan;
  plan.loop = LoadLoop::kTrace;
  plan.trace_seconds = {0, 0, 1.5};
  plan.warm_up_requests = 1;
  std::vector<double> times;
  std::vector<bool> measured;
  for (const ScheduledRequest& request : All(plan)) {
    times.push_back(request.intended_seconds);
    measured.push_back(request.is_measured);
  }
  EXPECT_THAT(times, ElementsAre(0, 0, 1.5));
  EXPECT_THAT(measured, ElementsAre(false, true, true));
}

}  // namespace
}  // namespace ultrasketch
