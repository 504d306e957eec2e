#include "engine/bench/load/load_summary.h"

#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/bench/load/distribution_summary.h"

namespace ultrasketch {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A request that is due at `intended` and has a token after each of `gaps`, ended by the last.
LoadRecord Request(double intended, const std::vector<TokenMessage>& messages) {
  LoadRecord record;
  record.intended_seconds = intended;
  record.sent_seconds = intended;
  record.messages = messages;
  record.prompt_tokens = 10;
  record.end_seconds = intended;
  for (const TokenMessage& message : messages) {
    record.end_seconds += message.gap_seconds;
    record.wanted_tokens += message.num_tokens;
  }
  return record;
}

LoadRecord Failed(double intended, double end, absl::StatusCode code, std::string reason) {
  LoadRecord record = Request(intended, {});
  record.end_seconds = end;
  record.code = code;
  record.reason = std::move(reason);
  record.message = "why";
  record.prompt_tokens = 0;
  return record;
}

TEST(DistributionTest, QuantilesAreThoseOfNumPy) {
  DistributionSamples samples;
  for (const double value : {7.0, 1.0, 3.0, 10.0, 2.0}) samples.Add(value);
  const DistributionSummary summary = samples.Summarize();
  EXPECT_EQ(summary.count, 5);
  EXPECT_DOUBLE_EQ(summary.mean, 4.6);
  EXPECT_DOUBLE_EQ(summary.p50, 3);
  EXPECT_DOUBLE_EQ(summary.p90, 8.8);  // numpy.quantile([1, 2, 3, 7, 10], 0.9)
  EXPECT_DOUBLE_EQ(summary.p99, 9.88);
  EXPECT_DOUBLE_EQ(summary.max, 10);
  ASSERT_EQ(summary.percentiles.size(), 101u);
  EXPECT_DOUBLE_EQ(summary.percentiles[0], 1);
  EXPECT_DOUBLE_EQ(summary.percentiles[25], 2);
  EXPECT_DOUBLE_EQ(summary.percentiles[100], 10);
}

TEST(DistributionTest, AValueCountsAsOftenAsItIsSaidTo) {
  DistributionSamples counted;
  counted.Add(1, 3);
  counted.Add(5, 2);
  counted.Add(9, 0);
  DistributionSamples repeated;
  for (const double value : {1.0, 1.0, 1.0, 5.0, 5.0}) repeated.Add(value);
  const DistributionSummary a = counted.Summarize();
  const DistributionSummary b = repeated.Summarize();
  EXPECT_EQ(a.count, b.count);
  EXPECT_DOUBLE_EQ(a.mean, b.mean);
  EXPECT_EQ(a.percentiles, b.percentiles);
}

TEST(DistributionTest, NothingIsZero) {
  const DistributionSummary summary = DistributionSamples().Summarize();
  EXPECT_EQ(summary.count, 0);
  EXPECT_EQ(summary.mean, 0);
  EXPECT_THAT(summary.percentiles, IsEmpty());
}

TEST(LoadSummaryTest, MessagesAreNotTokens) {
  RunRecord run;
  // Four tokens in two messages behind the first: 0.6 s for five steps from token to token.
  run.requests = {Request(0, {{0.5, 2}, {0.4, 2}, {0.2, 2}})};
  const LoadSummary summary = SummarizeRun(run, {});
  EXPECT_EQ(summary.output_tokens, 6);
  EXPECT_EQ(summary.num_messages, 3);
  EXPECT_EQ(summary.inter_token.count, 5);
  EXPECT_NEAR(summary.inter_token.mean, 0.12, 1e-6);
  EXPECT_NEAR(summary.inter_token.max, 0.2, 1e-6);
  EXPECT_NEAR(summary.time_per_output_token.mean, 0.12, 1e-6);
  EXPECT_NEAR(summary.longest_gap.max, 0.4, 1e-6);
  EXPECT_NEAR(summary.time_to_first_token.mean, 0.5, 1e-6);
  EXPECT_NEAR(summary.end_to_end.mean, 1.1, 1e-6);
}

TEST(LoadSummaryTest, LatenciesCountFromWhenARequestWasDue) {
  RunRecord run;
  run.plan.loop = LoadLoop::kOpen;
  LoadRecord late = Request(1, {{2.0, 1}});
  late.sent_seconds = 2.5;  // the client was held up for 1.5 s
  run.requests = {late};
  const LoadSummary summary = SummarizeRun(run, {});
  EXPECT_NEAR(summary.time_to_first_token.mean, 2, 1e-6);
  EXPECT_NEAR(summary.end_to_end.mean, 2, 1e-6);
  EXPECT_NEAR(summary.lateness.mean, 1.5, 1e-6);
  ASSERT_EQ(summary.warnings.size(), 1u);
  EXPECT_THAT(summary.warnings[0], HasSubstr("late"));
}

TEST(LoadSummaryTest, WarmUpIsInTheRatesAlone) {
  RunRecord run;
  LoadRecord warm_up = Request(0, {{5.0, 1}, {6.0, 1}});  // tokens at 5 s and 11 s
  warm_up.is_measured = false;
  run.requests = {warm_up, Request(10, {{1.0, 1}, {1.0, 1}})};
  const LoadSummary summary = SummarizeRun(run, {});
  EXPECT_EQ(summary.num_warm_up, 1);
  EXPECT_EQ(summary.num_requests, 1);
  EXPECT_NEAR(summary.window_seconds, 2, 1e-6);
  // Its second token, and both of the measured request.
  EXPECT_NEAR(summary.output_tokens_per_second, 1.5, 1e-6);
  EXPECT_NEAR(summary.requests_per_second, 1, 1e-6);
  EXPECT_NEAR(summary.prompt_tokens_per_second, 5, 1e-6);
  EXPECT_NEAR(summary.time_to_first_token.max, 1, 1e-6);
  EXPECT_EQ(summary.output_tokens, 2);
}

TEST(LoadSummaryTest, WhatComesAfterTheDurationIsNoThroughput) {
  RunRecord run;
  run.plan.duration_seconds = 4;
  run.requests = {Request(1, {{1.0, 1}, {2.0, 1}, {2.0, 1}})};  // at 2, 4 and 6 s
  const LoadSummary summary = SummarizeRun(run, {});
  EXPECT_NEAR(summary.window_seconds, 4, 1e-6);
  EXPECT_NEAR(summary.output_tokens_per_second, 0.5, 1e-6);
  EXPECT_EQ(summary.requests_per_second, 0);
  EXPECT_EQ(summary.end_to_end.count, 1);
}

TEST(LoadSummaryTest, TheWindowLastsAsLongAsTheRequestsWereToBeSent) {
  RunRecord run;
  run.plan.loop = LoadLoop::kOpen;
  run.plan.duration_seconds = 4;
  run.requests = {Request(1, {{1.0, 1}})};
  EXPECT_NEAR(SummarizeRun(run, {}).window_seconds, 4, 1e-6);  // no other one came
  run.plan.measured_requests = 1;
  EXPECT_NEAR(SummarizeRun(run, {}).window_seconds, 1, 1e-6);
}

TEST(LoadSummaryTest, GoodRequestsKeepEveryPartOfTheObjective) {
  RunRecord run;
  run.requests = {
      Request(0, {{0.1, 1}, {0.1, 1}, {0.1, 1}}),  // good
      Request(0, {{0.3, 1}, {0.1, 1}}),            // first token too late
      Request(0, {{0.1, 1}, {0.3, 1}, {0.3, 1}}),  // tokens too slow
      Request(0, {{0.1, 1}, {0.3, 1}, {0.0, 1}}),  // slow once, but not on average
      Failed(0, 1, absl::StatusCode::kUnavailable, ""),
  };
  ServiceObjective objective;
  objective.time_to_first_token = 0.2;
  objective.time_per_output_token = 0.2;
  LoadSummary summary = SummarizeRun(run, objective);
  EXPECT_EQ(summary.num_good, 2);
  EXPECT_NEAR(summary.good_requests_per_second, 2 / summary.window_seconds, 1e-6);
  objective.end_to_end = 0.35;
  EXPECT_EQ(SummarizeRun(run, objective).num_good, 1);
  EXPECT_EQ(SummarizeRun(run, {}).num_good, 4);
}

TEST(LoadSummaryTest, ErrorsAreCountedByCodeAndReason) {
  RunRecord run;
  run.requests = {Failed(0, 1, absl::StatusCode::kUnavailable, "DRAINING"),
                  Failed(0, 1, absl::StatusCode::kResourceExhausted, "QUEUE_FULL"),
                  Failed(0, 1, absl::StatusCode::kResourceExhausted, "QUEUE_FULL"),
                  Failed(0, 1, absl::StatusCode::kResourceExhausted, "")};
  run.rejections = {{true, 1, 0.25}, {true, 1, 0.75}, {false, 1, 100}};
  const LoadSummary summary = SummarizeRun(run, {});
  EXPECT_EQ(summary.num_ok, 0);
  ASSERT_EQ(summary.errors.size(), 3u);
  EXPECT_EQ(summary.errors[0].code, absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(summary.errors[0].reason, "QUEUE_FULL");
  EXPECT_EQ(summary.errors[0].count, 2);
  EXPECT_EQ(summary.errors[0].example, "why");
  EXPECT_EQ(summary.rejection.count, 2);
  EXPECT_DOUBLE_EQ(summary.rejection.mean, 0.5);
  EXPECT_EQ(summary.end_to_end.count, 0);
}

TEST(LoadSummaryTest, ABusyThreadOfTheClientIsAWarning) {
  RunRecord run;
  run.requests = {Request(0, {{0.1, 1}})};
  run.client.busiest_thread_share = 0.5;
  EXPECT_THAT(SummarizeRun(run, {}).warnings, IsEmpty());
  run.client.busiest_thread_share = 0.95;
  EXPECT_THAT(SummarizeRun(run, {}).warnings, ElementsAre(HasSubstr("95%")));
}

TEST(LoadSummaryTest, ShortCompletionsAreCounted) {
  RunRecord run;
  run.requests = {Request(0, {{0.1, 1}})};
  run.requests[0].wanted_tokens = 2;
  const LoadSummary summary = SummarizeRun(run, {});
  EXPECT_EQ(summary.num_short, 1);
  EXPECT_THAT(summary.warnings, ElementsAre(HasSubstr("fewer tokens")));
}

TEST(LoadSummaryTest, TheTimelineAddsUp) {
  RunRecord run;
  run.requests = {Request(0, {{0.5, 1}, {0.5, 3}}), Request(0.25, {{0.25, 2}}),
                  Failed(0.1, 0.6, absl::StatusCode::kInternal, "")};
  const LoadTimeline timeline = SummarizeRun(run, {}).timeline;
  double tokens = 0;
  double running = 0;
  double errors = 0;
  for (size_t i = 0; i < timeline.errors.size(); ++i) {
    tokens += timeline.output_tokens_per_second[i] * timeline.slice_seconds;
    running += timeline.running_requests[i] * timeline.slice_seconds;
    errors += timeline.errors[i];
  }
  EXPECT_NEAR(tokens, 6, 1e-6);
  EXPECT_NEAR(running, 1 + 0.25 + 0.5, 1e-6);
  EXPECT_EQ(errors, 1);
  EXPECT_LE(timeline.errors.size(), 60u);
  EXPECT_NEAR(timeline.slice_seconds, 0.02, 1e-9);
}

TEST(LoadSummaryTest, AnEmptyRunIsAllZeros) {
  const LoadSummary summary = SummarizeRun({}, {});
  EXPECT_EQ(summary.num_requests, 0);
  EXPECT_EQ(summary.output_tokens_per_second, 0);
  EXPECT_THAT(summary.timeline.errors, IsEmpty());
}

TEST(LoadSummaryTest, JsonHasNoNumbersThatAreNone) {
  RunRecord run;
  run.requests = {Request(0, {{0.5, 1}, {0.5, 1}})};
  ServiceObjective objective;
  objective.time_to_first_token = 1;
  const nlohmann::ordered_json json = ToJson(SummarizeRun(run, objective));
  EXPECT_EQ(json["loop"], "closed");
  EXPECT_EQ(json["concurrency"], 1);
  EXPECT_EQ(json["objective"]["time_to_first_token_seconds"], 1.0);
  EXPECT_TRUE(json["objective"]["end_to_end_seconds"].is_null());
  EXPECT_EQ(json["requests"]["ok"], 1);
  EXPECT_THAT(json["time_to_first_token_seconds"]["p50"].get<double>(), DoubleNear(0.5, 1e-6));
  EXPECT_THAT(json["output_tokens_per_second"].get<double>(), DoubleNear(2, 1e-5));
  EXPECT_THAT(json.dump(), ::testing::Not(HasSubstr("nan")));
}

}  // namespace
}  // namespace ultrasketch
