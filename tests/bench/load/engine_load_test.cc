#include "engine/bench/load/engine_load.h"

#include <memory>
#include <stop_token>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/bench/load/load_summary.h"
#include "tests/serving/engine_loop/fake_model.h"
#include "tests/serving/engine_loop/testing.h"

namespace ultrasketch {
namespace {

std::unique_ptr<EngineLoop> StartLoop(FakeModelOptions options = {}) {
  return EngineLoop::Start(std::make_unique<FakeModel>(std::move(options)), ByteTokenizer(), {});
}

Workload SmallWorkload() {
  WorkloadOptions options;
  options.prompt_tokens = *LengthDistribution::Parse("2:9");
  options.output_tokens = *LengthDistribution::Parse("1:7");
  return {options, {256, {}}, 0};
}

TEST(EngineLoadTest, EveryRequestGetsTheTokensThatItAsksFor) {
  const auto loop = StartLoop();
  const Workload workload = SmallWorkload();
  SchedulePlan plan;
  plan.concurrency = 4;
  plan.warm_up_requests = 3;
  plan.measured_requests = 20;
  int64_t num_ended = 0;
  EngineLoadOptions options;
  options.progress = [&](int64_t ended, double) { num_ended = ended; };
  const auto run = RunEngineLoad(*loop, workload, plan, options);
  ASSERT_TRUE(run.ok()) << run.status();
  ASSERT_EQ(run->requests.size(), 23u);
  EXPECT_EQ(num_ended, 23);
  int64_t wanted = 0;
  int64_t prompt = 0;
  for (int64_t index = 3; index < 23; ++index) {
    wanted += workload.Request(index).output_tokens;
    prompt += static_cast<int64_t>(workload.Request(index).prompt_ids.size());
  }
  const LoadSummary summary = SummarizeRun(*run, {});
  EXPECT_EQ(summary.num_ok, 20);
  EXPECT_EQ(summary.num_warm_up, 3);
  EXPECT_EQ(summary.num_short, 0);
  EXPECT_EQ(summary.output_tokens, wanted);
  EXPECT_EQ(summary.prompt_tokens, prompt);
  EXPECT_GT(summary.output_tokens_per_second, 0);
  EXPECT_GE(summary.mean_batch_size, 1);
  EXPECT_LE(summary.mean_batch_size, 4);
}

TEST(EngineLoadTest, ErrorsOfTheEngineAreInTheRecords) {
  FakeModelOptions model;
  model.before_forward = [](int64_t) { return absl::DataLossError("broken"); };
  const auto loop = StartLoop(std::move(model));
  SchedulePlan plan;
  plan.concurrency = 2;
  plan.measured_requests = 5;
  const auto run = RunEngineLoad(*loop, SmallWorkload(), plan, {});
  ASSERT_TRUE(run.ok()) << run.status();
  const LoadSummary summary = SummarizeRun(*run, {});
  EXPECT_EQ(summary.num_requests, 5);
  EXPECT_EQ(summary.num_ok, 0);
  ASSERT_EQ(summary.errors.size(), 1u);
  EXPECT_EQ(summary.errors[0].code, absl::StatusCode::kDataLoss);
  EXPECT_EQ(summary.errors[0].count, 5);
}

TEST(EngineLoadTest, StopsWhenItIsAskedTo) {
  const auto loop = StartLoop();
  SchedulePlan plan;
  plan.concurrency = 2;
  std::stop_source stop;
  EngineLoadOptions options;
  options.stop = stop.get_token();
  options.progress = [&](int64_t ended, double) {
    if (ended >= 10) stop.request_stop();
  };
  EXPECT_TRUE(absl::IsCancelled(RunEngineLoad(*loop, SmallWorkload(), plan, options).status()));
}

}  // namespace
}  // namespace ultrasketch
