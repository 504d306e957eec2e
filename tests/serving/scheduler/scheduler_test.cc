#include "engine/serving/scheduler/scheduler.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/serving/scheduler/scheduler_testing.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string StepUntilPreemption(Scheduler& scheduler) {
  while (true) {
    const int64_t num_before = scheduler.num_preemptions();
    std::string description = Step(scheduler);
    if (scheduler.num_preemptions() > num_before) return description;
  }
}

TEST(SchedulerTest, HasNothingToDoAtFirst) {
  Scheduler scheduler(SmallOptions());
  EXPECT_EQ(Describe(scheduler.Schedule()), "");
}

TEST(SchedulerTest, ComputesThePromptAndThenTokenByToken) {
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 5, 10));
  EXPECT_EQ(Step(scheduler), "1:0+5(1)*");
  EXPECT_EQ(Step(scheduler), "1:5+1(1)*");
  EXPECT_EQ(Step(scheduler), "1:6+1(1)*");
  EXPECT_EQ(scheduler.num_running(), 1);
  EXPECT_EQ(scheduler.cache().pool().num_used(), 2);
}

TEST(SchedulerTest, PlanShowsTheTokensAndBlocksOfTheChunk) {
  Scheduler scheduler(SmallOptions());
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
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 40, 50));
  EXPECT_EQ(Step(scheduler), "1:0+16(0)");
  EXPECT_EQ(Step(scheduler), "1:16+16(0)");
  EXPECT_EQ(Step(scheduler), "1:32+8(1)*");
  EXPECT_EQ(Step(scheduler), "1:40+1(1)*");
}

TEST(SchedulerTest, ServesTheRunningFirstAndFillsTheBudgetWithTheWaiting) {
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 6, 50));
  Submit(scheduler, Spec(2, 20, 50));
  EXPECT_EQ(Step(scheduler), "1:0+6(1)* 2:0+10(0)");
  Submit(scheduler, Spec(3, 7, 50));
  EXPECT_EQ(Step(scheduler), "1:6+1(1)* 2:10+10(1)* 3:0+5(0)");
  EXPECT_EQ(Step(scheduler), "1:7+1(1)* 2:20+1(1)* 3:5+2(1)*");
}

TEST(SchedulerTest, CountsDecodeTokensOfThePlan) {
  Scheduler scheduler(SmallOptions());
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
  Scheduler scheduler(SmallOptions());
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
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 5, 10));
  StepPlan plan = scheduler.Schedule();
  scheduler.Update(plan, NextTokens(plan, {7, 8, 9}));
  plan = scheduler.Schedule();
  EXPECT_EQ(Describe(plan), "1:5+3(1)*");
  EXPECT_THAT(plan.slices[0].token_ids, ElementsAre(7, 8, 9));
}

TEST(SchedulerTest, AnOutputThatEndsReleasesTheBlocks) {
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 5, 10));
  const StepPlan plan = scheduler.Schedule();
  scheduler.Update(plan, {{{1, {}, /*ended=*/true}}});
  EXPECT_EQ(scheduler.cache().pool().num_used(), 0);
  EXPECT_EQ(scheduler.num_running(), 0);
}

TEST(SchedulerTest, OutputsOfSequencesRemovedSinceThePlanAreIgnored) {
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 5, 10));
  Submit(scheduler, Spec(2, 5, 10));
  const StepPlan plan = scheduler.Schedule();
  const std::vector<SequenceOutput> outputs = NextTokens(plan);
  scheduler.Remove(1);
  scheduler.Update(plan, outputs);
  EXPECT_EQ(Step(scheduler), "2:5+1(1)*");
}

TEST(SchedulerTest, AdmitsInOrderOfArrival) {
  Scheduler scheduler(SmallOptions());
  for (SequenceId id = 1; id <= 6; ++id) Submit(scheduler, Spec(id, 2, 50));
  EXPECT_EQ(Step(scheduler), "1:0+2(1)* 2:0+2(1)* 3:0+2(1)* 4:0+2(1)*");  // four may run
  scheduler.Remove(2);
  EXPECT_EQ(Step(scheduler), "1:2+1(1)* 3:2+1(1)* 4:2+1(1)* 5:0+2(1)*");
  EXPECT_EQ(scheduler.num_waiting(), 1);
}

TEST(SchedulerTest, AdmitsInOrderOfPriorityThenArrival) {
  SchedulerOptions options = SmallOptions();
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

TEST(SchedulerTest, ALongPromptDoesNotStopSequencesBehindIt) {
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 3, 50, /*priority=*/1));
  EXPECT_EQ(Step(scheduler), "1:0+3(1)*");
  Submit(scheduler, Spec(2, 40, 50, /*priority=*/0));
  EXPECT_EQ(Step(scheduler), "2:0+15(0) 1:3+1(1)*");
  EXPECT_EQ(Step(scheduler), "2:15+15(0) 1:4+1(1)*");
}

TEST(SchedulerTest, LimitsRunningSequencesToTokensAndRowsOfAStep) {
  SchedulerOptions options = SmallOptions();
  options.max_running_sequences = 100;
  EXPECT_EQ(Scheduler(options).options().max_running_sequences, 8);
  options.max_step_tokens = 5;
  EXPECT_EQ(Scheduler(options).options().max_running_sequences, 5);
}

TEST(SchedulerTest, GivesLogitsOfAllPositionsWithinTheRowsOfAStep) {
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 2, 50));
  EXPECT_EQ(Step(scheduler), "1:0+2(1)*");
  SequenceSpec spec = Spec(2, 20, 50);
  spec.first_logit_position = 0;
  Submit(scheduler, spec);
  Submit(scheduler, Spec(3, 2, 50));
  EXPECT_EQ(Step(scheduler), "1:2+1(1)* 2:0+7(7) 3:0+1(0)");
  EXPECT_EQ(Step(scheduler), "1:3+1(1)* 2:7+6(6) 3:1+1(1)*");
  EXPECT_EQ(Step(scheduler), "1:4+1(1)* 2:13+6(6) 3:2+1(1)*");
  EXPECT_EQ(Step(scheduler), "1:5+1(1)* 2:19+1(1)* 3:3+1(1)*");
}

TEST(SchedulerTest, GivesLogitsFromAPositionOn) {
  Scheduler scheduler(SmallOptions());
  SequenceSpec spec = Spec(1, 30, 50);
  spec.first_logit_position = 12;
  Submit(scheduler, spec);
  EXPECT_EQ(Step(scheduler), "1:0+16(4)");
  EXPECT_EQ(Step(scheduler), "1:16+8(8)");
  EXPECT_EQ(Step(scheduler), "1:24+6(6)*");
}

TEST(SchedulerTest, PreemptsTheLastInOrderAndRecomputesItWithItsTokens) {
  Scheduler scheduler(SmallOptions(/*num_blocks=*/4));
  Submit(scheduler, Spec(1, 4, 12));
  Submit(scheduler, Spec(2, 4, 12));
  EXPECT_EQ(Step(scheduler), "1:0+4(1)* 2:0+4(1)*");
  for (int i = 0; i < 4; ++i) Step(scheduler);
  EXPECT_EQ(scheduler.cache().pool().num_free(), 0);
  // Both need a third block. 2 is the last; it has generated five tokens and keeps them.
  EXPECT_EQ(Step(scheduler), "1:8+1(1)* -2");
  EXPECT_THAT(scheduler.blocks(2), IsEmpty());
  EXPECT_EQ(scheduler.num_preemptions(), 1);
  EXPECT_EQ(Step(scheduler), "1:9+1(1)*");
  scheduler.Remove(1);
  EXPECT_EQ(Step(scheduler), "2:4+5(1)*");  // its first block was not needed by others
  EXPECT_EQ(Step(scheduler), "2:9+1(1)*");
}

TEST(SchedulerTest, PreemptsTheLowestPriorityEvenIfItCameFirst) {
  Scheduler scheduler(SmallOptions(/*num_blocks=*/4));
  Submit(scheduler, Spec(1, 4, 12, /*priority=*/1));
  Submit(scheduler, Spec(2, 4, 12, /*priority=*/0));
  EXPECT_THAT(StepUntilPreemption(scheduler), HasSubstr("-1"));
}

TEST(SchedulerTest, PreemptedSequencesWaitBeforeLaterArrivals) {
  Scheduler scheduler(SmallOptions(/*num_blocks=*/4));
  Submit(scheduler, Spec(1, 4, 12));
  Submit(scheduler, Spec(2, 4, 12));
  StepUntilPreemption(scheduler);
  Submit(scheduler, Spec(3, 1, 2));
  EXPECT_EQ(Step(scheduler).find("3:"), std::string::npos);
  scheduler.Remove(1);
  EXPECT_THAT(Step(scheduler), HasSubstr("2:4+5(1)*"));
}

TEST(SchedulerTest, LogitsGivenBeforeAPreemptionAreNotGivenAgain) {
  SchedulerOptions options = SmallOptions(/*num_blocks=*/6);
  options.prefix_cache = false;
  Scheduler scheduler(options);
  Submit(scheduler, Spec(1, 7, 20));
  SequenceSpec spec = Spec(2, 9, 20);
  spec.first_logit_position = 0;
  Submit(scheduler, spec);
  EXPECT_EQ(Step(scheduler), "1:0+7(1)* 2:0+7(7)");
  EXPECT_EQ(Step(scheduler), "1:7+1(1)* 2:7+2(2)*");
  EXPECT_EQ(Step(scheduler), "1:8+1(1)* 2:9+1(1)*");
  EXPECT_THAT(StepUntilPreemption(scheduler), HasSubstr("-2"));
  scheduler.Remove(1);
  // 13 tokens by now, all logits but the last position's were given.
  EXPECT_EQ(Step(scheduler), "2:0+13(1)*");
}

TEST(SchedulerTest, AdmitsOnlyWithRoomForTheRunningToGrow) {
  Scheduler scheduler(SmallOptions(/*num_blocks=*/4));
  Submit(scheduler, Spec(1, 4, 16));
  Submit(scheduler, Spec(2, 12, 16));  // would take what 1 needs in the next step
  EXPECT_EQ(Step(scheduler), "1:0+4(1)*");
  EXPECT_EQ(Step(scheduler), "1:4+1(1)*");
  EXPECT_EQ(scheduler.num_preemptions(), 0);
}

TEST(SchedulerTest, RemoveFreesTheBlocksOfARunningSequenceAtOnce) {
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 40, 50));
  Step(scheduler);
  EXPECT_EQ(scheduler.cache().pool().num_used(), 10);
  scheduler.Remove(1);
  EXPECT_EQ(scheduler.cache().pool().num_used(), 0);
  EXPECT_EQ(scheduler.num_running(), 0);
  EXPECT_EQ(Describe(scheduler.Schedule()), "");
}

TEST(SchedulerTest, RemoveForgetsAWaitingSequence) {
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 4, 50));
  Submit(scheduler, Spec(2, 4, 50));
  scheduler.Remove(1);
  scheduler.Remove(99);
  EXPECT_EQ(scheduler.num_waiting(), 1);
  EXPECT_EQ(Step(scheduler), "2:0+4(1)*");
}

TEST(SchedulerTest, AStepThatFailedIsPlannedAgain) {
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 20, 50));
  EXPECT_EQ(Describe(scheduler.Schedule()), "1:0+16(0)");
  EXPECT_EQ(Describe(scheduler.Schedule()), "1:0+16(0)");
  EXPECT_EQ(scheduler.cache().pool().num_used(), 5);
}

TEST(SchedulerTest, RefusesWhatCanNeverFitIntoTheCache) {
  Scheduler scheduler(SmallOptions(/*num_blocks=*/4));
  EXPECT_TRUE(scheduler.Submit(Spec(1, 4, 16)).ok());
  const absl::Status status = scheduler.Submit(Spec(2, 4, 17));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("17 tokens can never fit into the KV cache of 16 tokens"));
  EXPECT_EQ(scheduler.num_waiting(), 1);
}

TEST(SchedulerTest, RefusesWhatExceedsTheContext) {
  Scheduler scheduler(SmallOptions(/*num_blocks=*/1000));
  const absl::Status status = scheduler.Submit(Spec(1, 4, 1001));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("exceeds the context of 1000 tokens"));
}

}  // namespace
}  // namespace ultrasketch
