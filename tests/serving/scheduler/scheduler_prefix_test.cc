// What sequences share, and what is found again.

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/serving/scheduler/scheduler.h"
#include "tests/serving/scheduler/scheduler_testing.h"

namespace ultrasketch {
namespace {

TEST(SchedulerPrefixTest, SharesTheFullBlocksOfACommonPrompt) {
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 22, 50));
  Submit(scheduler, Sibling(2, 1, 22));
  Submit(scheduler, Sibling(3, 1, 22));
  EXPECT_EQ(Step(scheduler), "1:0+16(0)");
  EXPECT_EQ(Step(scheduler), "1:16+6(1)*");
  EXPECT_EQ(Step(scheduler), "1:22+1(1)* 2:20+2(1)* 3:20+2(1)*");
  const BlockPool& pool = scheduler.cache().pool();
  EXPECT_EQ(pool.num_used(), 6 + 1 + 1);
  EXPECT_EQ(pool.reference_count(scheduler.blocks(1)[0]), 3);
  EXPECT_EQ(scheduler.blocks(2)[4], scheduler.blocks(1)[4]);
  EXPECT_NE(scheduler.blocks(2)[5], scheduler.blocks(1)[5]);
  scheduler.Remove(1);
  EXPECT_EQ(pool.num_used(), 5 + 1 + 1);
  scheduler.Remove(2);
  scheduler.Remove(3);
  EXPECT_EQ(pool.num_used(), 0);
}

TEST(SchedulerPrefixTest, ComputesAtLeastTheLastTokenOfASharedPrompt) {
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 8, 50));
  Submit(scheduler, Sibling(2, 1, 8));
  EXPECT_EQ(Step(scheduler), "1:0+8(1)*");
  EXPECT_EQ(Step(scheduler), "1:8+1(1)* 2:4+4(1)*");
}

TEST(SchedulerPrefixTest, FindsWhatASequenceLeftBehind) {
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 10, 50));
  Step(scheduler);
  scheduler.Remove(1);
  Submit(scheduler, Sibling(2, 1, 10));
  EXPECT_EQ(Step(scheduler), "2:8+2(1)*");
  EXPECT_EQ(scheduler.prefix_cache_counts().num_hit_tokens, 8);
  EXPECT_EQ(scheduler.prefix_cache_counts().num_miss_tokens, 10 + 2);
}

TEST(SchedulerPrefixTest, FindsGeneratedTokensToo) {
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 6, 50));
  for (int i = 0; i < 4; ++i) Step(scheduler);  // 100 .. 105, 7, 7, 7 computed
  scheduler.Remove(1);
  SequenceSpec next_turn = Sibling(2, 1, 6);
  next_turn.token_ids.insert(next_turn.token_ids.end(), {7, 7, 7, 8, 9});
  Submit(scheduler, next_turn);
  EXPECT_EQ(Step(scheduler), "2:8+3(1)*");
}

TEST(SchedulerPrefixTest, AStepThatFailedLeavesNothingToBeFound) {
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 8, 50));
  scheduler.Schedule();
  scheduler.Remove(1);
  Submit(scheduler, Sibling(2, 1, 8));
  EXPECT_EQ(Step(scheduler), "2:0+8(1)*");
}

TEST(SchedulerPrefixTest, ComputesEveryTokenWhoseLogitsAreWanted) {
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 14, 50));
  Step(scheduler);
  SequenceSpec scored = Sibling(2, 1, 14);
  scored.first_logit_position = 10;
  Submit(scheduler, scored);
  EXPECT_EQ(Step(scheduler), "1:14+1(1)* 2:8+6(4)*");
}

TEST(SchedulerPrefixTest, ASwitchedOffCacheFindsAndSharesNothing) {
  SchedulerOptions options = SmallOptions();
  options.prefix_cache = false;
  Scheduler scheduler(options);
  Submit(scheduler, Spec(1, 8, 50));
  Submit(scheduler, Sibling(2, 1, 8));
  EXPECT_EQ(Step(scheduler), "1:0+8(1)* 2:0+8(1)*");
  scheduler.Remove(1);
  Submit(scheduler, Sibling(3, 1, 8));
  EXPECT_EQ(Step(scheduler), "2:8+1(1)* 3:0+8(1)*");
  EXPECT_EQ(scheduler.prefix_cache_counts().num_hit_tokens, 0);
}

TEST(SchedulerPrefixTest, AnUrgentSequenceDoesNotWaitForALaxOneToComputeItsPrompt) {
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 24, 50, /*priority=*/1));
  Submit(scheduler, Sibling(2, 1, 24, /*priority=*/0));
  EXPECT_EQ(Step(scheduler), "2:0+16(0)");
  EXPECT_EQ(Step(scheduler), "2:16+8(1)*");
  EXPECT_EQ(Step(scheduler), "2:24+1(1)* 1:20+4(1)*");
}

TEST(SchedulerPrefixTest, WhatIsComputedTwiceIsHeldOnce) {
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 24, 50, /*priority=*/1));
  EXPECT_EQ(Step(scheduler), "1:0+16(0)");
  // The urgent one finds four blocks and computes the fifth itself, beside the lax one.
  Submit(scheduler, Sibling(2, 1, 28, /*priority=*/0));
  EXPECT_EQ(Step(scheduler), "2:16+12(1)* 1:16+4(0)");
  EXPECT_EQ(scheduler.blocks(1)[4], scheduler.blocks(2)[4]);
  EXPECT_EQ(scheduler.cache().pool().num_used(), 7 + 1);
}

TEST(SchedulerPrefixTest, APreemptedSequenceFindsWhatIsLeftOfIt) {
  Scheduler scheduler(SmallOptions(/*num_blocks=*/6));
  Submit(scheduler, Spec(1, 4, 24, /*priority=*/0));
  Submit(scheduler, Spec(2, 8, 24, /*priority=*/1));
  EXPECT_EQ(Step(scheduler), "1:0+4(1)* 2:0+8(1)*");
  EXPECT_EQ(Step(scheduler), "1:4+1(1)* 2:8+1(1)*");
  for (int i = 0; i < 3; ++i) Step(scheduler);
  EXPECT_EQ(scheduler.num_preemptions(), 0);
  EXPECT_EQ(Step(scheduler), "1:8+1(1)* -2");
  scheduler.Remove(1);
  EXPECT_EQ(Step(scheduler), "2:12+1(1)*");
}

TEST(SchedulerPrefixTest, TheContentsUsedLongestAgoAreGivenUpFirst) {
  Scheduler scheduler(SmallOptions(/*num_blocks=*/8));
  for (SequenceId id = 1; id <= 2; ++id) {
    Submit(scheduler, Spec(id, 12, 16));
    Step(scheduler);
    scheduler.Remove(id);
  }
  Submit(scheduler, Spec(3, 16, 20));  // four blocks: the two that are empty, and the end of 1's
  Step(scheduler);
  scheduler.Remove(3);
  Submit(scheduler, Sibling(11, 1, 12));
  EXPECT_EQ(Step(scheduler), "11:4+8(1)*");
  scheduler.Remove(11);
  Submit(scheduler, Sibling(12, 2, 12));
  EXPECT_EQ(Step(scheduler), "12:4+8(1)*");
  EXPECT_EQ(scheduler.prefix_cache_counts().num_hit_tokens, 8);
}

}  // namespace
}  // namespace ultrasketch
