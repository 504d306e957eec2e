#include "engine/serving/engine_loop/drain_rate.h"

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1'000'000);

TEST(DrainRateTest, IsUnknownUntilSomethingHasWaited) {
  DrainRate rate;
  EXPECT_EQ(rate.PerSecond(), 0);
  rate.Observe(kStart, 100, 0);
  rate.Observe(kStart + absl::Seconds(1), 100, 0);
  EXPECT_EQ(rate.PerSecond(), 0);
}

TEST(DrainRateTest, CountsOnlyTheTimeInWhichSomethingWaits) {
  DrainRate rate;
  absl::Time now = kStart;
  rate.Observe(now, 0, 10);
  for (int i = 0; i < 20; ++i) rate.Observe(now += absl::Milliseconds(100), 1, i < 19 ? 5 : 0);
  EXPECT_NEAR(rate.PerSecond(), 10, 0.5);
  // An hour in which single requests pass.
  for (int i = 0; i < 60; ++i) rate.Observe(now += absl::Minutes(1), 1, 0);
  EXPECT_NEAR(rate.PerSecond(), 10, 0.5);
}

TEST(DrainRateTest, FollowsTheRecentPast) {
  DrainRate rate;
  absl::Time now = kStart;
  rate.Observe(now, 0, 10);
  for (int i = 0; i < 1000; ++i) rate.Observe(now += absl::Milliseconds(10), 1, 5);
  EXPECT_NEAR(rate.PerSecond(), 100, 1);
  for (int i = 0; i < 60; ++i) rate.Observe(now += absl::Seconds(1), 1, 5);
  EXPECT_NEAR(rate.PerSecond(), 1, 0.5);
}

TEST(DrainRateTest, AClockThatGoesBackDoesNoHarm) {
  DrainRate rate;
  rate.Observe(kStart, 0, 10);
  rate.Observe(kStart + absl::Seconds(1), 5, 10);
  rate.Observe(kStart - absl::Hours(1), 0, 10);
  EXPECT_NEAR(rate.PerSecond(), 5, 0.5);
}

TEST(SpreadRetryDelayTest, SpreadsThoseWhoAskOverTheTimeThatTheQueueTakes) {
  std::vector<absl::Duration> delays;
  for (uint64_t i = 0; i < 100; ++i) delays.push_back(SpreadRetryDelay(100, 10, i));
  std::sort(delays.begin(), delays.end());
  // 100 at 10 a second: ten seconds, evenly.
  EXPECT_GE(delays.front(), kMinRetryDelay);
  EXPECT_LE(delays.back(), absl::Seconds(10.2));
  for (size_t i = 1; i < delays.size(); ++i) {
    EXPECT_LE(delays[i] - delays[i - 1], absl::Milliseconds(250));
  }
}

TEST(SpreadRetryDelayTest, IsBounded) {
  EXPECT_EQ(SpreadRetryDelay(10, 1e9, 1), kMinRetryDelay);
  EXPECT_EQ(SpreadRetryDelay(1'000'000, 0.001, 1), kMaxRetryDelay);
  EXPECT_EQ(SpreadRetryDelay(10, 0, 1), kUnknownRetryDelay);
}

}  // namespace
}  // namespace ultrasketch
