// Random operations against a model of what the scheduler promises.

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "engine/base/random.h"
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
  std::vector<int> logits_given;   // by position, how often
  std::vector<uint64_t> contents;  // of the cache, by position; as far as they were asked for
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
    options_.prefix_cache = Uniform(0, 3) > 0;
    // Ageing, or an order that is known from outside.
    ages_ = Uniform(0, 1) == 0;
    options_.ageing_steps = ages_ ? Uniform(1, 50) : int64_t{1} << 40;
    options_.max_passes = Uniform(1, 5);
    contents_.assign(static_cast<size_t>(options_.num_blocks * options_.block_size), 0);
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
    spec.client = std::string(1, static_cast<char>('a' + Uniform(0, 2)));
    spec.max_num_tokens = Uniform(num_tokens, std::min(capacity, num_tokens + 40));
    spec.priority = static_cast<int32_t>(Uniform(-1, 1));
    Expected expected;
    if (Uniform(0, 3) == 0) {
      spec.first_logit_position = 0;
      expected.wants_all_logits = true;
    }
    // At times it begins as another one did.
    if (!last_prompt_.empty() && Uniform(0, 1) == 0) {
      const int64_t num_common =
          Uniform(1, std::min<int64_t>(num_tokens, static_cast<int64_t>(last_prompt_.size())));
      std::copy_n(last_prompt_.begin(), num_common, spec.token_ids.begin());
    } else {
      last_prompt_ = spec.token_ids;
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
    WriteContents(plan);
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

  // What stands in the cache for a position: a function of all tokens up to it.
  static uint64_t ContentsAt(Expected& expected, int64_t position) {
    std::vector<uint64_t>& contents = expected.contents;
    while (static_cast<int64_t>(contents.size()) <= position) {
      const auto token = static_cast<uint64_t>(expected.token_ids[contents.size()]);
      contents.push_back(RandomWord(contents.empty() ? 1 : contents.back(), token, 1));
    }
    return contents[static_cast<size_t>(position)];
  }

  uint64_t& Contents(const SequenceSlice& slice, int64_t position) {
    const BlockId block = slice.blocks[static_cast<size_t>(position / options_.block_size)];
    return contents_[static_cast<size_t>(block * options_.block_size +
                                         position % options_.block_size)];
  }

  void WriteContents(const StepPlan& plan) {
    for (size_t i = 0; i < plan.slices.size(); ++i) {
      const SequenceSlice& slice = plan.slices[i];
      Expected& expected = expected_[plan.sequences[i].id];
      for (int64_t position = slice.num_cached; position < slice.end(); ++position) {
        Contents(slice, position) = ContentsAt(expected, position);
      }
    }
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
        for (const SequenceId id : plan.preempted) {
          EXPECT_TRUE(ages_ || expected.order.first < expected_[id].order.first)
              << "admitted after a preemption that was not for it";
        }
        expected.running = true;
        expected.num_cached = s.num_cached;  // found
        EXPECT_EQ(s.num_cached % options_.block_size, 0);
      }
      ASSERT_EQ(s.num_cached, expected.num_cached);
      for (int64_t position = 0; position < s.num_cached; ++position) {
        ASSERT_EQ(Contents(s, position), ContentsAt(expected, position));
      }
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
        EXPECT_EQ(scheduler_->cache().pool().reference_count(block), 1);
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
        if (expected_[id].running && !ages_) {
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
                scheduler_->cache().pool().reference_count(static_cast<BlockId>(block)));
      if (counts[block] > 0) ++num_used;
    }
    EXPECT_EQ(num_used, scheduler_->cache().pool().num_used());
  }

  std::mt19937 random_;
  SchedulerOptions options_;
  std::unique_ptr<Scheduler> scheduler_;
  std::map<SequenceId, Expected> expected_;
  std::vector<int32_t> last_prompt_;
  bool ages_ = false;
  std::vector<uint64_t> contents_;  // [num_blocks][block_size]
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
  EXPECT_EQ(scheduler_->cache().pool().num_used(), 0);
  EXPECT_EQ(scheduler_->num_running() + scheduler_->num_waiting(), 0);
}

// More arrives than can be served, of all priorities, until the end: everything is served in time.
TEST_P(SchedulerRandomTest, NothingStarvesUnderLoad) {
  options_.num_blocks = 30;
  options_.block_size = 4;
  options_.max_context_tokens = 120;
  options_.max_step_tokens = 24;
  options_.max_step_logits = 8;
  options_.max_running_sequences = 6;
  options_.ageing_steps = 8;
  contents_.assign(30 * 4, 0);
  ages_ = true;
  scheduler_ = std::make_unique<Scheduler>(options_);
  std::map<SequenceId, int> arrivals;
  int longest = 0;
  for (int step = 0; step < 3000 && !HasFailure(); ++step) {
    while (expected_.size() < 24) {
      arrivals[next_id_] = step;
      SubmitRandom();
    }
    StepOnce();
    std::erase_if(arrivals, [this](const auto& entry) { return !expected_.contains(entry.first); });
    for (const auto& [id, arrival] : arrivals) longest = std::max(longest, step - arrival);
  }
  EXPECT_LT(longest, 1500);
  EXPECT_GT(num_finished_, 100);
}

// With tokens enough in a step and no common beginnings, blocks are all that is short of.
TEST_P(SchedulerRandomTest, PassingIsBounded) {
  options_.max_context_tokens = 1000;
  options_.max_step_tokens = 1000;
  options_.max_step_logits = 1000;
  options_.max_running_sequences = 8;
  Scheduler scheduler(options_);
  const int64_t capacity = options_.num_blocks * options_.block_size;
  std::map<SequenceId, int64_t> num_passed;  // of those waiting
  std::map<SequenceId, int64_t> max_num_tokens;
  SequenceId next_id = 1;
  for (int step = 0; step < 2000; ++step) {
    while (num_passed.size() < 10) {
      SequenceSpec spec;
      spec.id = next_id++;
      const int64_t largest = Uniform(0, 5) == 0 ? capacity : std::max<int64_t>(2, capacity / 8);
      for (int64_t i = Uniform(1, largest - 1); i > 0; --i) {
        spec.token_ids.push_back(static_cast<int32_t>(Uniform(0, 1 << 30)));
      }
      spec.max_num_tokens =
          std::min<int64_t>(capacity, static_cast<int64_t>(spec.token_ids.size()) + Uniform(1, 30));
      num_passed[spec.id] = 0;
      max_num_tokens[spec.id] = spec.max_num_tokens;
      ASSERT_TRUE(scheduler.Submit(std::move(spec)).ok());
    }
    const StepPlan plan = scheduler.Schedule();
    std::vector<SequenceOutput> outputs;
    std::vector<SequenceId> admitted;
    for (size_t i = 0; i < plan.slices.size(); ++i) {
      const ScheduledSequence& s = plan.sequences[i];
      if (num_passed.erase(s.id) > 0) admitted.push_back(s.id);
      if (!s.is_last_chunk) continue;
      const bool ended = plan.slices[i].end() == max_num_tokens[s.id] || Uniform(0, 9) == 0;
      outputs.push_back({s.id, ended ? std::vector<int32_t>() : std::vector<int32_t>{1}, ended});
    }
    for (const SequenceId id : admitted) {
      for (auto& [other, count] : num_passed) {
        if (other < id) {
          EXPECT_LE(++count, options_.max_passes) << other;
        }
      }
    }
    scheduler.Update(plan, outputs);
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, SchedulerRandomTest, ::testing::Range(0u, 40u));

}  // namespace
}  // namespace ultrasketch
