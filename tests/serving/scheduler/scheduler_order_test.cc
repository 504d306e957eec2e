// Who is served when not everybody can be: priorities, preemption, passing, clients, ageing.

#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/serving/scheduler/scheduler.h"
#include "tests/serving/scheduler/scheduler_testing.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

SchedulerOptions OneSlot() {
  SchedulerOptions options = SmallOptions();
  options.max_running_sequences = 1;
  return options;
}

TEST(SchedulerOrderTest, AnUrgentSequenceTakesTheSlotOfALaxOne) {
  Scheduler scheduler(OneSlot());
  Submit(scheduler, Spec(1, 6, 50, /*priority=*/10));
  EXPECT_EQ(Step(scheduler), "1:0+6(1)*");
  EXPECT_EQ(Step(scheduler), "1:6+1(1)*");
  Submit(scheduler, Spec(2, 5, 50, /*priority=*/-5));
  EXPECT_EQ(Step(scheduler), "2:0+5(1)* -1");
  EXPECT_EQ(Step(scheduler), "2:5+1(1)*");
  EXPECT_EQ(scheduler.num_preemptions(), 1);
  scheduler.Remove(2);
  // It kept its two generated tokens, and its full block.
  EXPECT_EQ(Step(scheduler), "1:4+4(1)*");
  EXPECT_EQ(Step(scheduler), "1:8+1(1)*");
}

TEST(SchedulerOrderTest, EqualPrioritiesDoNotTakeSlotsFromEachOther) {
  Scheduler scheduler(OneSlot());
  Submit(scheduler, Spec(1, 6, 390));
  Submit(scheduler, Spec(2, 6, 50));
  Step(scheduler);
  for (int i = 0; i < 380; ++i) EXPECT_THAT(Step(scheduler), Not(HasSubstr("-1")));
  EXPECT_EQ(scheduler.num_preemptions(), 0);
}

TEST(SchedulerOrderTest, TheLastInOrderMakesRoom) {
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 2, 50, 3));
  Submit(scheduler, Spec(2, 2, 50, 4));
  Submit(scheduler, Spec(3, 2, 50, 4));
  Submit(scheduler, Spec(4, 2, 50, 3));
  Step(scheduler);
  Submit(scheduler, Spec(5, 2, 50, 3));
  EXPECT_EQ(Step(scheduler), "1:2+1(1)* 4:2+1(1)* 5:0+2(1)* 2:2+1(1)* -3");
}

TEST(SchedulerOrderTest, AnUrgentSequenceTakesTheBlocksOfLaxOnes) {
  Scheduler scheduler(SmallOptions(/*num_blocks=*/10));
  Submit(scheduler, Spec(1, 10, 20, 0));
  Submit(scheduler, Spec(2, 6, 20, 1));
  Submit(scheduler, Spec(3, 2, 20, 1));
  EXPECT_EQ(Step(scheduler), "1:0+10(1)* 2:0+4(0) 3:0+2(1)*");
  // Seven blocks, and one for 1 to grow: 3, and then 2, have to go.
  Submit(scheduler, Spec(4, 22, 30, -1));
  EXPECT_EQ(Step(scheduler), "4:0+15(0) 1:10+1(1)* -3 -2");
}

TEST(SchedulerOrderTest, WhatIsPreemptedIsNotReplacedByItsLike) {
  Scheduler scheduler(SmallOptions(/*num_blocks=*/10));
  Submit(scheduler, Spec(1, 12, 20, 1));
  Submit(scheduler, Spec(2, 2, 20, 1));
  Step(scheduler);
  Submit(scheduler, Spec(3, 2, 20, 1));
  Submit(scheduler, Spec(4, 26, 30, 0));
  // 4 takes seven blocks, so 2 and 1 lose theirs. 3 would fit, but comes after them.
  EXPECT_EQ(Step(scheduler), "4:0+16(0) -2 -1");
}

TEST(SchedulerOrderTest, NothingIsPreemptedInVain) {
  Scheduler scheduler(SmallOptions(/*num_blocks=*/10));
  Submit(scheduler, Spec(1, 16, 30, 0));
  EXPECT_EQ(Step(scheduler), "1:0+16(1)*");
  Submit(scheduler, Spec(2, 4, 20, 1));
  EXPECT_EQ(Step(scheduler), "1:16+1(1)* 2:0+4(1)*");
  // Six blocks, and one for 1 to grow, of which all but 1's five could be had.
  Submit(scheduler, Spec(3, 24, 30, 0));
  EXPECT_EQ(Step(scheduler), "1:17+1(1)* 2:4+1(1)*");
}

TEST(SchedulerOrderTest, AnUrgentPromptDoesNotWaitForTheStepsOfALaxOne) {
  Scheduler scheduler(SmallOptions());
  Submit(scheduler, Spec(1, 100, 200, 1));
  EXPECT_EQ(Step(scheduler), "1:0+16(0)");
  Submit(scheduler, Spec(2, 30, 50, 0));
  EXPECT_EQ(Step(scheduler), "2:0+15(0) 1:16+1(0)");
  EXPECT_EQ(Step(scheduler), "2:15+15(1)* 1:17+1(0)");
}

TEST(SchedulerOrderTest, WhatHasWaitedIsNotPreemptedByWhatItIsAheadOf) {
  SchedulerOptions options = OneSlot();
  options.ageing_steps = 10;
  Scheduler scheduler(options);
  Submit(scheduler, Spec(1, 2, 300, 0));
  Step(scheduler);
  Submit(scheduler, Spec(2, 2, 300, 3));
  for (int i = 0; i < 25; ++i) Step(scheduler);
  scheduler.Remove(1);
  EXPECT_EQ(Step(scheduler), "2:0+2(1)*");
  Submit(scheduler, Spec(3, 2, 50, 0));
  EXPECT_EQ(Step(scheduler), "2:2+1(1)*");
  Submit(scheduler, Spec(4, 2, 50, -1));
  EXPECT_EQ(Step(scheduler), "4:0+2(1)* -2");
}

TEST(SchedulerOrderTest, TheWorstPriorityIsServedInTheEndBesideAnEndlessStreamOfTheBest) {
  SchedulerOptions options = OneSlot();
  options.ageing_steps = 4;
  Scheduler scheduler(options);
  Submit(scheduler, Spec(1, 2, 12, std::numeric_limits<int32_t>::max()));
  bool is_finished = false;
  int num_steps = 0;
  for (SequenceId id = 2; !is_finished && num_steps < 1000; ++num_steps) {
    if (num_steps % 2 == 0) {
      Submit(scheduler, Spec(id, 1, 10, std::numeric_limits<int32_t>::min()));
      ++id;
    }
    const StepPlan plan = scheduler.Schedule();
    std::vector<SequenceOutput> outputs = NextTokens(plan);
    for (size_t i = 0; i < plan.slices.size(); ++i) {
      if (plan.slices[i].end() < (plan.sequences[i].id == 1 ? 12 : 3)) continue;
      outputs[i].ended = true;
      is_finished = is_finished || plan.sequences[i].id == 1;
    }
    scheduler.Update(plan, outputs);
  }
  EXPECT_TRUE(is_finished);
  EXPECT_LE(num_steps, 33 * 4 + 20);
}

TEST(SchedulerOrderTest, SmallSequencesPassALargeOneThatLacksBlocksABoundedNumberOfTimes) {
  SchedulerOptions options = SmallOptions(/*num_blocks=*/10);
  options.max_step_tokens = 64;
  options.max_passes = 2;
  Scheduler scheduler(options);
  Submit(scheduler, Spec(1, 16, 40));
  Submit(scheduler, Spec(2, 32, 40));  // eight blocks of the six that are left
  for (SequenceId id = 3; id <= 6; ++id) Submit(scheduler, Spec(id, 2, 4));
  EXPECT_EQ(Step(scheduler), "1:0+16(1)* 3:0+2(1)* 4:0+2(1)*");
  scheduler.Remove(3);
  scheduler.Remove(4);
  EXPECT_EQ(Step(scheduler), "1:16+1(1)*");  // 2 was passed twice
  scheduler.Remove(1);
  EXPECT_EQ(Step(scheduler), "2:0+32(1)* 5:0+2(1)*");
}

TEST(SchedulerOrderTest, NothingPassesWhatWouldPreemptIt) {
  Scheduler scheduler(SmallOptions(/*num_blocks=*/10));
  Submit(scheduler, Spec(1, 16, 40, 0));
  Submit(scheduler, Spec(2, 32, 40, 0));
  Submit(scheduler, Spec(3, 2, 4, 1));
  EXPECT_EQ(Step(scheduler), "1:0+16(1)*");
  EXPECT_EQ(Step(scheduler), "1:16+1(1)*");
}

TEST(SchedulerOrderTest, AShortPromptIsComputedBesideLongOnesThatCameBeforeIt) {
  SchedulerOptions options;
  options.num_blocks = 4096;
  options.max_context_tokens = 2048;
  Scheduler scheduler(options);
  for (SequenceId id = 1; id <= 20; ++id) Submit(scheduler, Spec(id, 900, 1000));
  EXPECT_EQ(Step(scheduler), "1:0+512(0)");
  Submit(scheduler, Spec(99, 3, 100));
  EXPECT_EQ(Step(scheduler), "1:512+388(1)* 2:0+121(0) 99:0+3(1)*");
}

TEST(SchedulerOrderTest, LongPromptsAreComputedInOrderNotAllAtOnce) {
  SchedulerOptions options;
  options.num_blocks = 4096;
  options.max_context_tokens = 2048;
  Scheduler scheduler(options);
  for (SequenceId id = 1; id <= 3; ++id) Submit(scheduler, Spec(id, 900, 1000));
  EXPECT_EQ(Step(scheduler), "1:0+512(0)");
  EXPECT_EQ(Step(scheduler), "1:512+388(1)* 2:0+124(0)");
  EXPECT_EQ(Step(scheduler), "1:900+1(1)* 2:124+511(0)");
  EXPECT_EQ(Step(scheduler), "1:901+1(1)* 2:635+265(1)* 3:0+246(0)");
}

TEST(SchedulerOrderTest, TheLastSlotBeforeALongPromptIsTakenABoundedNumberOfTimes) {
  SchedulerOptions options = SmallOptions(/*num_blocks=*/400);
  options.max_running_sequences = 2;
  options.max_passes = 3;
  Scheduler scheduler(options);
  Submit(scheduler, Spec(1, 300, 350));
  Submit(scheduler, Spec(2, 600, 700));
  Step(scheduler);
  int num_passes = 0;
  for (SequenceId id = 3; id < 13; ++id) {
    Submit(scheduler, Spec(id, 2, 10));
    const std::string step = Step(scheduler);
    num_passes += step.find(absl::StrCat(" ", id, ":0+2")) != std::string::npos;
    scheduler.Remove(id);
  }
  EXPECT_EQ(num_passes, 3);
}

SequenceSpec Of(const std::string& client, SequenceSpec spec) {
  spec.client = client;
  return spec;
}

TEST(SchedulerOrderTest, ManyRequestsOfOneClientDoNotStandBeforeAnothersOne) {
  Scheduler scheduler(OneSlot());
  for (SequenceId id = 1; id <= 9; ++id) Submit(scheduler, Of("busy", Spec(id, 4, 50)));
  EXPECT_EQ(Step(scheduler), "1:0+4(1)*");
  Submit(scheduler, Of("calm", Spec(10, 4, 50)));
  Submit(scheduler, Of("calm", Spec(11, 4, 50)));
  for (const SequenceId id : {1, 2, 10, 3, 11, 4}) {
    if (id != 1) {
      EXPECT_EQ(Step(scheduler), absl::StrCat(id, ":0+4(1)*"));
    }
    scheduler.Remove(id);
  }
}

}  // namespace
}  // namespace ultrasketch
