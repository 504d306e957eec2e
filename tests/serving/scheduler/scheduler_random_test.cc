// Random operations against a model of what the scheduler promises.

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "engine/serving/scheduler/scheduler.h"

namespace ultrasketch {
namespace {

// What a sequence must look like, tracked from the outside.
struct Expected {
  std::vector<int32_t> token_ids;
  int64_t max_num_tokens = 0;
  int64_t num_cached = 0;
  int64_t num_submitted = 0;
  bool running = false;
  bool wants_all_logits = false;
  std::vector<int> logits_given;  // by position, how often
  std::pair<int32_t, uint64_t> order;
};

class SchedulerRandomTest : public ::testing::TestWithParam<uint32_t> {
 protected:
  SchedulerRandomTest() : random_(GetParam()) {
    options_.num_blocks = Uniform(6, 40);
    options_.block_size = Uniform(1, 8);
    options_.max_context_tokens = Uniform(8, 300);
    options_.max_step_tokens = Uniform(1, 64);
    options_.max_step_logits = Uniform(1, 16);
    options_.max_running_sequences = Uniform(1, 12);
    scheduler_ = std::make_unique<Scheduler>(options_);
  }

  int64_t Uniform(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }

  void SubmitRandom() {
    const int64_t capacity =
        std::min(options_.num_blocks * options_.block_size, options_.max_context_tokens);
    SequenceSpec spec;
    spec.id = next_id_++;
    const int64_t num_tokens = Uniform(1, capacity);
    for (int64_t i = 0; i < num_tokens; ++i) {
      spec.token_ids.push_back(static_cast<int32_t>(Uniform(0, 1000)));
    }
    spec.max_num_tokens = Uniform(num_tokens, std::min(capacity, num_tokens + 40));
    spec.priority = static_cast<int32_t>(Uniform(-1, 1));
    Expected expected;
    if (Uniform(0, 3) == 0) {
      spec.first_logit_position = 0;
      expected.wants_all_logits = true;
    }
    // A sibling of an earlier one, at times.
    if (!expected_.empty() && Uniform(0, 2) == 0) {
      auto source = expected_.begin();
      std::advance(source, Uniform(0, static_cast<int64_t>(expected_.size()) - 1));
      spec.prefix_source = source->first;
      spec.priority = source->second.order.first;
      spec.token_ids.assign(source->second.token_ids.begin(),
                            source->second.token_ids.begin() + source->second.num_submitted);
      spec.num_shared_tokens = static_cast<int64_t>(spec.token_ids.size());
      spec.max_num_tokens = source->second.max_num_tokens;
    }
    expected.token_ids = spec.token_ids;
    expected.num_submitted = static_cast<int64_t>(spec.token_ids.size());
    expected.max_num_tokens = spec.max_num_tokens;
    expected.order = {spec.priority, next_id_};
    expected.logits_given.assign(static_cast<size_t>(spec.max_num_tokens), 0);
    expected_[spec.id] = std::move(expected);
    ASSERT_TRUE(scheduler_->Submit(std::move(spec)).ok());
  }

  void RemoveRandom() {
    if (expected_.empty()) return;
    auto victim = expected_.begin();
    std::advance(victim, Uniform(0, static_cast<int64_t>(expected_.size()) - 1));
    scheduler_->Remove(victim->first);
    expected_.erase(victim);
  }

  void StepOnce() {
    const StepPlan plan = scheduler_->Schedule();
    CheckPlan(plan);
    if (HasFailure()) return;
    if (Uniform(0, 9) == 0) return;  // the step failed; all is planned again
    std::vector<SequenceOutput> outputs;
    for (size_t i = 0; i < plan.slices.size(); ++i) {
      const SequenceSlice& slice = plan.slices[i];
      const SequenceId id = plan.sequences[i].id;
      Expected& expected = expected_[id];
      expected.num_cached += slice.num_tokens();
      for (int64_t k = expected.num_cached - slice.num_logits; k < expected.num_cached; ++k) {
        EXPECT_EQ(++expected.logits_given[static_cast<size_t>(k)], 1) << "position " << k;
      }
      if (plan.sequences[i].is_last_chunk) outputs.push_back(DrawOutput(id, expected));
    }
    scheduler_->Update(plan, outputs);
  }

  // The next tokens of a sequence whose tokens are all computed, or its end.
  SequenceOutput DrawOutput(SequenceId id, Expected& expected) {
    EXPECT_EQ(expected.logits_given[static_cast<size_t>(expected.num_cached - 1)], 1);
    if (expected.wants_all_logits) {
      for (int64_t i = 0; i < expected.num_submitted; ++i) {
        EXPECT_EQ(expected.logits_given[static_cast<size_t>(i)], 1) << "position " << i;
      }
    }
    SequenceOutput output;
    output.id = id;
    const int64_t num_left = expected.max_num_tokens - expected.num_cached;
    if (num_left == 0 || Uniform(0, 9) == 0) {
      output.ended = true;
      expected_.erase(id);
      ++num_finished_;
      return output;
    }
    for (int64_t i = Uniform(0, 5) == 0 ? std::min<int64_t>(num_left, 3) : 1; i > 0; --i) {
      output.token_ids.push_back(static_cast<int32_t>(Uniform(0, 1000)));
    }
    expected.token_ids.insert(expected.token_ids.end(), output.token_ids.begin(),
                              output.token_ids.end());
    return output;
  }

  void CheckPlan(const StepPlan& plan) {
    ASSERT_TRUE(!plan.sequences.empty() || expected_.empty()) << "no progress";
    ASSERT_LE(plan.num_tokens, options_.max_step_tokens);
    ASSERT_LE(plan.num_logits, options_.max_step_logits);

    std::vector<SequenceId> was_running;
    for (const auto& [id, expected] : expected_) {
      if (expected.running) was_running.push_back(id);
    }
    for (const SequenceId id : plan.preempted) {
      Expected& expected = expected_[id];
      EXPECT_TRUE(expected.running);
      expected.running = false;
      expected.num_cached = 0;
    }
    int64_t num_tokens = 0;
    int64_t num_logits = 0;
    std::vector<SequenceId> planned;
    ASSERT_EQ(plan.sequences.size(), plan.slices.size());
    for (size_t i = 0; i < plan.slices.size(); ++i) {
      const SequenceSlice& s = plan.slices[i];
      const ScheduledSequence& scheduled = plan.sequences[i];
      ASSERT_TRUE(expected_.contains(scheduled.id));
      Expected& expected = expected_[scheduled.id];
      EXPECT_EQ(scheduled.first_logits_row, num_logits);
      if (!expected.running) {
        EXPECT_TRUE(plan.preempted.empty()) << "admitted after a preemption";
        expected.running = true;
        expected.num_cached = s.num_cached;  // shared with another
      }
      ASSERT_EQ(s.num_cached, expected.num_cached);
      ASSERT_GE(s.token_ids.size(), 1u);
      const int64_t end = s.end();
      ASSERT_LE(end, static_cast<int64_t>(expected.token_ids.size()));
      EXPECT_TRUE(std::equal(s.token_ids.begin(), s.token_ids.end(),
                             expected.token_ids.begin() + s.num_cached));
      EXPECT_EQ(scheduled.is_last_chunk, end == static_cast<int64_t>(expected.token_ids.size()));
      EXPECT_GE(static_cast<int64_t>(s.blocks.size()) * options_.block_size, end);
      // Nobody else writes where this one writes.
      for (int64_t position = s.num_cached; position < end; ++position) {
        const BlockId block = s.blocks[static_cast<size_t>(position / options_.block_size)];
        EXPECT_EQ(scheduler_->block_pool().reference_count(block), 1);
      }
      num_tokens += s.num_tokens();
      num_logits += s.num_logits;
      planned.push_back(scheduled.id);
    }
    EXPECT_EQ(num_tokens, plan.num_tokens);
    EXPECT_EQ(num_logits, plan.num_logits);

    // Every sequence that runs is in the plan, once; what was preempted comes after what was not.
    std::sort(planned.begin(), planned.end());
    EXPECT_EQ(std::adjacent_find(planned.begin(), planned.end()), planned.end());
    for (const auto& [id, expected] : expected_) {
      EXPECT_EQ(std::binary_search(planned.begin(), planned.end(), id), expected.running) << id;
    }
    for (const SequenceId lost : plan.preempted) {
      for (const SequenceId id : was_running) {
        if (expected_[id].running) {
          EXPECT_LT(expected_[id].order, expected_[lost].order);
        }
      }
    }
    CheckBlocks();
  }

  // The pool's reference counts are what the sequences hold.
  void CheckBlocks() {
    std::vector<int32_t> counts(static_cast<size_t>(options_.num_blocks), 0);
    for (const auto& [id, expected] : expected_) {
      const auto blocks = scheduler_->blocks(id);
      EXPECT_TRUE(expected.running || blocks.empty()) << id;
      for (const BlockId block : blocks) ++counts[static_cast<size_t>(block)];
    }
    int64_t num_used = 0;
    for (size_t block = 0; block < counts.size(); ++block) {
      EXPECT_EQ(counts[block],
                scheduler_->block_pool().reference_count(static_cast<BlockId>(block)));
      if (counts[block] > 0) ++num_used;
    }
    EXPECT_EQ(num_used, scheduler_->block_pool().num_used());
  }

  std::mt19937 random_;
  SchedulerOptions options_;
  std::unique_ptr<Scheduler> scheduler_;
  std::map<SequenceId, Expected> expected_;
  SequenceId next_id_ = 1;
  int64_t num_finished_ = 0;
};

TEST_P(SchedulerRandomTest, KeepsItsPromisesAndFinishesEverything) {
  int64_t num_submitted = 0;
  for (int i = 0; i < 2000 && !HasFailure(); ++i) {
    const int64_t choice = Uniform(0, 19);
    if (choice < 4 && expected_.size() < 30) {
      SubmitRandom();
      ++num_submitted;
    } else if (choice == 4) {
      RemoveRandom();
      CheckBlocks();
    } else {
      StepOnce();
    }
  }
  ASSERT_FALSE(HasFailure());
  // No starvation: what is there finishes when nothing comes any more.
  for (int i = 0; i < 100000 && !expected_.empty() && !HasFailure(); ++i) StepOnce();
  EXPECT_TRUE(expected_.empty());
  EXPECT_GT(num_finished_, 0);
  EXPECT_GT(num_submitted, 100);
  EXPECT_EQ(scheduler_->block_pool().num_used(), 0);
  EXPECT_EQ(scheduler_->num_running() + scheduler_->num_waiting(), 0);
}

INSTANTIATE_TEST_SUITE_P(Seeds, SchedulerRandomTest, ::testing::Range(0u, 40u));

}  // namespace
}  // namespace ultrasketch
