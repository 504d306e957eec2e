#include "engine/serving/scheduler/scheduler.h"

#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

SchedulerOptions Options(int64_t num_blocks = 100, int64_t block_size = 4) {
  SchedulerOptions options;
  options.num_blocks = num_blocks;
  options.block_size = block_size;
  options.max_context_tokens = 1000;
  options.max_step_tokens = 16;
  options.max_step_logits = 8;
  options.max_running_sequences = 4;
  return options;
}

SequenceSpec Spec(SequenceId id, int64_t num_tokens, int64_t max_num_tokens, int32_t priority = 0) {
  SequenceSpec spec;
  spec.id = id;
  spec.token_ids.resize(static_cast<size_t>(num_tokens));
  std::iota(spec.token_ids.begin(), spec.token_ids.end(), static_cast<int32_t>(100 * id));
  spec.max_num_tokens = max_num_tokens;
  spec.priority = priority;
  return spec;
}

void Submit(Scheduler& scheduler, SequenceSpec spec) {
  ASSERT_TRUE(scheduler.Submit(std::move(spec)).ok());
}

// "1:0+16(0) 2:3+1(1)*": id, tokens in the cache, new tokens, rows of logits; a star when the next
// token is to be sampled.
std::string Describe(const StepPlan& plan) {
  std::vector<std::string> parts;
  for (size_t i = 0; i < plan.slices.size(); ++i) {
    const SequenceSlice& slice = plan.slices[i];
    parts.push_back(absl::StrCat(plan.sequences[i].id, ":", slice.num_cached, "+",
                                 slice.num_tokens(), "(", slice.num_logits, ")",
                                 plan.sequences[i].is_last_chunk ? "*" : ""));
  }
  return absl::StrJoin(parts, " ");
}

// An output of a token for each sequence that a token is due for.
std::vector<SequenceOutput> NextTokens(const StepPlan& plan, std::vector<int32_t> token_ids = {7}) {
  std::vector<SequenceOutput> outputs;
  for (const ScheduledSequence& s : plan.sequences) {
    if (s.is_last_chunk) outputs.push_back({s.id, token_ids, /*ended=*/false});
  }
  return outputs;
}

// Plans a step, computes it, and appends a token where one is due.
std::string Step(Scheduler& scheduler, std::vector<SequenceId>* preempted = nullptr) {
  const StepPlan plan = scheduler.Schedule();
  const std::string description = Describe(plan);
  if (preempted != nullptr) *preempted = plan.preempted;
  scheduler.Update(plan, NextTokens(plan));
  return description;
}

TEST(SchedulerTest, HasNothingToDoAtFirst) {
  Scheduler scheduler(Options());
  EXPECT_EQ(Describe(scheduler.Schedule()), "");
}

TEST(SchedulerTest, ComputesThePromptAndThenTokenByToken) {
  Scheduler scheduler(Options());
  Submit(scheduler, Spec(1, 5, 10));
  EXPECT_EQ(Step(scheduler), "1:0+5(1)*");
  EXPECT_EQ(Step(scheduler), "1:5+1(1)*");
  EXPECT_EQ(Step(scheduler), "1:6+1(1)*");
  EXPECT_EQ(scheduler.num_running(), 1);
  EXPECT_EQ(scheduler.block_pool().num_used(), 2);
}

TEST(SchedulerTest, PlanShowsTheTokensAndBlocksOfTheChunk) {
  Scheduler scheduler(Options());
  Submit(scheduler, Spec(1, 20, 30));
  StepPlan plan = scheduler.Schedule();
  scheduler.Update(plan, {});
  plan = scheduler.Schedule();
  ASSERT_EQ(plan.slices.size(), 1u);
  EXPECT_THAT(plan.slices[0].token_ids, ElementsAre(116, 117, 118, 119));
  EXPECT_THAT(plan.slices[0].blocks, ElementsAre(0, 1, 2, 3, 4));
  EXPECT_EQ(plan.num_tokens, 4);
  EXPECT_EQ(plan.num_decode_tokens, 0);
  EXPECT_EQ(plan.num_logits, 1);
}

TEST(SchedulerTest, ComputesLongPromptsInChunksOfTheBudget) {
  Scheduler scheduler(Options());
  Submit(scheduler, Spec(1, 40, 50));
  EXPECT_EQ(Step(scheduler), "1:0+16(0)");
  EXPECT_EQ(Step(scheduler), "1:16+16(0)");
  EXPECT_EQ(Step(scheduler), "1:32+8(1)*");
  EXPECT_EQ(Step(scheduler), "1:40+1(1)*");
}

TEST(SchedulerTest, ServesTheRunningFirstAndFillsTheBudgetWithTheWaiting) {
  Scheduler scheduler(Options());
  Submit(scheduler, Spec(1, 6, 50));
  Submit(scheduler, Spec(2, 20, 50));
  EXPECT_EQ(Step(scheduler), "1:0+6(1)* 2:0+10(0)");
  Submit(scheduler, Spec(3, 7, 50));
  EXPECT_EQ(Step(scheduler), "1:6+1(1)* 2:10+10(1)* 3:0+5(0)");
  EXPECT_EQ(Step(scheduler), "1:7+1(1)* 2:20+1(1)* 3:5+2(1)*");
}

TEST(SchedulerTest, CountsDecodeTokensOfThePlan) {
  Scheduler scheduler(Options());
  Submit(scheduler, Spec(1, 1, 50));
  StepPlan plan = scheduler.Schedule();
  EXPECT_EQ(plan.num_decode_tokens, 0);  // a prompt of one token is a prompt
  scheduler.Update(plan, NextTokens(plan));
  Submit(scheduler, Spec(2, 3, 50));
  plan = scheduler.Schedule();
  EXPECT_EQ(plan.num_tokens, 4);
  EXPECT_EQ(plan.num_decode_tokens, 1);
}

TEST(SchedulerTest, PlanShowsWhereTheRowsOfEachSequenceBegin) {
  Scheduler scheduler(Options());
  SequenceSpec spec = Spec(1, 3, 50);
  spec.first_logit_position = 0;
  Submit(scheduler, spec);
  Submit(scheduler, Spec(2, 2, 50));
  Submit(scheduler, Spec(3, 20, 50));
  const StepPlan plan = scheduler.Schedule();
  EXPECT_EQ(Describe(plan), "1:0+3(3)* 2:0+2(1)* 3:0+11(0)");
  EXPECT_EQ(plan.sequences[0].first_logits_row, 0);
  EXPECT_EQ(plan.sequences[1].first_logits_row, 3);
  EXPECT_EQ(plan.sequences[2].first_logits_row, 4);
  EXPECT_EQ(plan.num_logits, 4);
}

TEST(SchedulerTest, SeveralTokensOfAStepAreComputedTogetherInTheNext) {
  Scheduler scheduler(Options());
  Submit(scheduler, Spec(1, 5, 10));
  StepPlan plan = scheduler.Schedule();
  scheduler.Update(plan, NextTokens(plan, {7, 8, 9}));
  plan = scheduler.Schedule();
  EXPECT_EQ(Describe(plan), "1:5+3(1)*");
  EXPECT_THAT(plan.slices[0].token_ids, ElementsAre(7, 8, 9));
}

TEST(SchedulerTest, AnOutputThatEndsReleasesTheBlocks) {
  Scheduler scheduler(Options());
  Submit(scheduler, Spec(1, 5, 10));
  const StepPlan plan = scheduler.Schedule();
  scheduler.Update(plan, {{{1, {}, /*ended=*/true}}});
  EXPECT_EQ(scheduler.block_pool().num_used(), 0);
  EXPECT_EQ(scheduler.num_running(), 0);
}

TEST(SchedulerTest, OutputsOfSequencesRemovedSinceThePlanAreIgnored) {
  Scheduler scheduler(Options());
  Submit(scheduler, Spec(1, 5, 10));
  Submit(scheduler, Spec(2, 5, 10));
  const StepPlan plan = scheduler.Schedule();
  const std::vector<SequenceOutput> outputs = NextTokens(plan);
  scheduler.Remove(1);
  scheduler.Update(plan, outputs);
  EXPECT_EQ(Step(scheduler), "2:5+1(1)*");
}

TEST(SchedulerTest, AdmitsInOrderOfArrival) {
  Scheduler scheduler(Options());
  for (SequenceId id = 1; id <= 6; ++id) Submit(scheduler, Spec(id, 2, 50));
  EXPECT_EQ(Step(scheduler), "1:0+2(1)* 2:0+2(1)* 3:0+2(1)* 4:0+2(1)*");  // four may run
  scheduler.Remove(2);
  EXPECT_EQ(Step(scheduler), "1:2+1(1)* 3:2+1(1)* 4:2+1(1)* 5:0+2(1)*");
  EXPECT_EQ(scheduler.num_waiting(), 1);
}

TEST(SchedulerTest, AdmitsInOrderOfPriorityThenArrival) {
  SchedulerOptions options = Options();
  options.max_running_sequences = 1;
  Scheduler scheduler(options);
  Submit(scheduler, Spec(1, 2, 50, /*priority=*/5));
  Submit(scheduler, Spec(2, 2, 50, /*priority=*/-1));
  Submit(scheduler, Spec(3, 2, 50, /*priority=*/5));
  Submit(scheduler, Spec(4, 2, 50, /*priority=*/-1));
  for (const SequenceId expected : {2, 4, 1, 3}) {
    EXPECT_EQ(Step(scheduler), absl::StrCat(expected, ":0+2(1)*"));
    scheduler.Remove(expected);
  }
}

TEST(SchedulerTest, NothingOvertakesASequenceThatWaitsForMemory) {
  Scheduler scheduler(Options(/*num_blocks=*/10));
  Submit(scheduler, Spec(1, 16, 40));
  Submit(scheduler, Spec(2, 32, 40));  // eight blocks of the six that are left
  Submit(scheduler, Spec(3, 2, 40));   // would fit
  EXPECT_EQ(Step(scheduler), "1:0+16(1)*");
  EXPECT_EQ(Step(scheduler), "1:16+1(1)*");
  scheduler.Remove(1);
  EXPECT_EQ(Step(scheduler), "2:0+16(0)");
}

TEST(SchedulerTest, ALongPromptDoesNotStopSequencesBehindIt) {
  Scheduler scheduler(Options());
  Submit(scheduler, Spec(1, 3, 50, /*priority=*/1));
  EXPECT_EQ(Step(scheduler), "1:0+3(1)*");
  Submit(scheduler, Spec(2, 40, 50, /*priority=*/0));
  EXPECT_EQ(Step(scheduler), "1:3+1(1)* 2:0+15(0)");
  EXPECT_EQ(Step(scheduler), "2:15+15(0) 1:4+1(1)*");
}

TEST(SchedulerTest, LimitsRunningSequencesToTokensAndRowsOfAStep) {
  SchedulerOptions options = Options();
  options.max_running_sequences = 100;
  EXPECT_EQ(Scheduler(options).options().max_running_sequences, 8);
  options.max_step_tokens = 5;
  EXPECT_EQ(Scheduler(options).options().max_running_sequences, 5);
}

TEST(SchedulerTest, GivesLogitsOfAllPositionsWithinTheRowsOfAStep) {
  Scheduler scheduler(Options());
  Submit(scheduler, Spec(1, 2, 50));
  EXPECT_EQ(Step(scheduler), "1:0+2(1)*");
  SequenceSpec spec = Spec(2, 20, 50);
  spec.first_logit_position = 0;
  Submit(scheduler, spec);
  Submit(scheduler, Spec(3, 2, 50));
  EXPECT_EQ(Step(scheduler), "1:2+1(1)* 2:0+7(7)");
  EXPECT_EQ(Step(scheduler), "1:3+1(1)* 2:7+7(7)");
  EXPECT_EQ(Step(scheduler), "1:4+1(1)* 2:14+6(6)* 3:0+2(1)*");
}

TEST(SchedulerTest, GivesLogitsFromAPositionOn) {
  Scheduler scheduler(Options());
  SequenceSpec spec = Spec(1, 30, 50);
  spec.first_logit_position = 12;
  Submit(scheduler, spec);
  EXPECT_EQ(Step(scheduler), "1:0+16(4)");
  EXPECT_EQ(Step(scheduler), "1:16+8(8)");
  EXPECT_EQ(Step(scheduler), "1:24+6(6)*");
}

TEST(SchedulerTest, PreemptsTheLastInOrderAndRecomputesItWithItsTokens) {
  Scheduler scheduler(Options(/*num_blocks=*/4));
  Submit(scheduler, Spec(1, 4, 12));
  Submit(scheduler, Spec(2, 4, 12));
  EXPECT_EQ(Step(scheduler), "1:0+4(1)* 2:0+4(1)*");
  for (int i = 0; i < 4; ++i) Step(scheduler);
  EXPECT_EQ(scheduler.block_pool().num_free(), 0);
  // Both need a third block. 2 is the last; it has generated five tokens and keeps them.
  std::vector<SequenceId> preempted;
  EXPECT_EQ(Step(scheduler, &preempted), "1:8+1(1)*");
  EXPECT_THAT(preempted, ElementsAre(2));
  EXPECT_THAT(scheduler.blocks(2), IsEmpty());
  EXPECT_EQ(scheduler.num_preemptions(), 1);
  EXPECT_EQ(Step(scheduler, &preempted), "1:9+1(1)*");
  EXPECT_THAT(preempted, IsEmpty());
  scheduler.Remove(1);
  EXPECT_EQ(Step(scheduler), "2:0+9(1)*");
  EXPECT_EQ(Step(scheduler), "2:9+1(1)*");
}

TEST(SchedulerTest, PreemptsTheLowestPriorityEvenIfItCameFirst) {
  Scheduler scheduler(Options(/*num_blocks=*/4));
  Submit(scheduler, Spec(1, 4, 12, /*priority=*/1));
  Submit(scheduler, Spec(2, 4, 12, /*priority=*/0));
  std::vector<SequenceId> preempted;
  while (preempted.empty()) Step(scheduler, &preempted);
  EXPECT_THAT(preempted, ElementsAre(1));
}

TEST(SchedulerTest, PreemptedSequencesWaitBeforeLaterArrivals) {
  Scheduler scheduler(Options(/*num_blocks=*/4));
  Submit(scheduler, Spec(1, 4, 12));
  Submit(scheduler, Spec(2, 4, 12));
  std::vector<SequenceId> preempted;
  while (preempted.empty()) Step(scheduler, &preempted);
  Submit(scheduler, Spec(3, 1, 2));
  EXPECT_EQ(Step(scheduler).find("3:"), std::string::npos);
  scheduler.Remove(1);
  EXPECT_THAT(Step(scheduler), HasSubstr("2:0+9(1)*"));
}

TEST(SchedulerTest, LogitsGivenBeforeAPreemptionAreNotGivenAgain) {
  Scheduler scheduler(Options(/*num_blocks=*/6));
  Submit(scheduler, Spec(1, 7, 20));
  SequenceSpec spec = Spec(2, 9, 20);
  spec.first_logit_position = 0;
  Submit(scheduler, spec);
  EXPECT_EQ(Step(scheduler), "1:0+7(1)* 2:0+7(7)");
  EXPECT_EQ(Step(scheduler), "1:7+1(1)* 2:7+2(2)*");
  EXPECT_EQ(Step(scheduler), "1:8+1(1)* 2:9+1(1)*");
  std::vector<SequenceId> preempted;
  while (preempted.empty()) Step(scheduler, &preempted);
  EXPECT_THAT(preempted, ElementsAre(2));
  scheduler.Remove(1);
  // 13 tokens by now, all logits but the last position's were given.
  EXPECT_EQ(Step(scheduler), "2:0+13(1)*");
}

TEST(SchedulerTest, AdmitsOnlyWithRoomForTheRunningToGrow) {
  Scheduler scheduler(Options(/*num_blocks=*/4));
  Submit(scheduler, Spec(1, 4, 16));
  Submit(scheduler, Spec(2, 12, 16));  // would take what 1 needs in the next step
  EXPECT_EQ(Step(scheduler), "1:0+4(1)*");
  EXPECT_EQ(Step(scheduler), "1:4+1(1)*");
  EXPECT_EQ(scheduler.num_preemptions(), 0);
}

TEST(SchedulerTest, RemoveFreesTheBlocksOfARunningSequenceAtOnce) {
  Scheduler scheduler(Options());
  Submit(scheduler, Spec(1, 40, 50));
  Step(scheduler);
  EXPECT_EQ(scheduler.block_pool().num_used(), 10);
  scheduler.Remove(1);
  EXPECT_EQ(scheduler.block_pool().num_used(), 0);
  EXPECT_EQ(scheduler.num_running(), 0);
  EXPECT_EQ(Describe(scheduler.Schedule()), "");
}

TEST(SchedulerTest, RemoveForgetsAWaitingSequence) {
  Scheduler scheduler(Options());
  Submit(scheduler, Spec(1, 4, 50));
  Submit(scheduler, Spec(2, 4, 50));
  scheduler.Remove(1);
  scheduler.Remove(99);
  EXPECT_EQ(scheduler.num_waiting(), 1);
  EXPECT_EQ(Step(scheduler), "2:0+4(1)*");
}

TEST(SchedulerTest, AStepThatFailedIsPlannedAgain) {
  Scheduler scheduler(Options());
  Submit(scheduler, Spec(1, 20, 50));
  EXPECT_EQ(Describe(scheduler.Schedule()), "1:0+16(0)");
  EXPECT_EQ(Describe(scheduler.Schedule()), "1:0+16(0)");
  EXPECT_EQ(scheduler.block_pool().num_used(), 5);
}

TEST(SchedulerTest, RefusesWhatCanNeverFitIntoTheCache) {
  Scheduler scheduler(Options(/*num_blocks=*/4));
  EXPECT_TRUE(scheduler.Submit(Spec(1, 4, 16)).ok());
  const absl::Status status = scheduler.Submit(Spec(2, 4, 17));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("17 tokens can never fit into the KV cache of 16 tokens"));
  EXPECT_EQ(scheduler.num_waiting(), 1);
}

TEST(SchedulerTest, RefusesWhatExceedsTheContext) {
  Scheduler scheduler(Options(/*num_blocks=*/1000));
  const absl::Status status = scheduler.Submit(Spec(1, 4, 1001));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("exceeds the context of 1000 tokens"));
}

SequenceSpec Sibling(SequenceId id, SequenceId source, int64_t num_tokens) {
  SequenceSpec spec = Spec(id, num_tokens, 50);
  spec.prefix_source = source;
  spec.num_shared_tokens = num_tokens;
  return spec;
}

TEST(SchedulerTest, SharesTheFullBlocksOfACommonPrompt) {
  Scheduler scheduler(Options());
  Submit(scheduler, Spec(1, 22, 50));
  Submit(scheduler, Sibling(2, 1, 22));
  Submit(scheduler, Sibling(3, 1, 22));
  EXPECT_EQ(Step(scheduler), "1:0+16(0)");
  EXPECT_EQ(Step(scheduler), "1:16+6(1)*");
  EXPECT_EQ(Step(scheduler), "1:22+1(1)* 2:20+2(1)* 3:20+2(1)*");
  EXPECT_EQ(scheduler.block_pool().num_used(), 6 + 1 + 1);
  EXPECT_EQ(scheduler.block_pool().reference_count(scheduler.blocks(1)[0]), 3);
  EXPECT_EQ(scheduler.blocks(2)[4], scheduler.blocks(1)[4]);
  EXPECT_NE(scheduler.blocks(2)[5], scheduler.blocks(1)[5]);
  scheduler.Remove(1);
  EXPECT_EQ(scheduler.block_pool().num_used(), 5 + 1 + 1);
  scheduler.Remove(2);
  scheduler.Remove(3);
  EXPECT_EQ(scheduler.block_pool().num_used(), 0);
}

TEST(SchedulerTest, ComputesAtLeastTheLastTokenOfASharedPrompt) {
  Scheduler scheduler(Options());
  Submit(scheduler, Spec(1, 8, 50));
  Submit(scheduler, Sibling(2, 1, 8));
  EXPECT_EQ(Step(scheduler), "1:0+8(1)*");
  EXPECT_EQ(Step(scheduler), "1:8+1(1)* 2:4+4(1)*");
}

TEST(SchedulerTest, SharesNothingWhenTheSourceIsGone) {
  Scheduler scheduler(Options());
  Submit(scheduler, Spec(1, 8, 50));
  Submit(scheduler, Sibling(2, 1, 8));
  Step(scheduler);
  scheduler.Remove(1);
  EXPECT_EQ(Step(scheduler), "2:0+8(1)*");
}

}  // namespace
}  // namespace ultrasketch
