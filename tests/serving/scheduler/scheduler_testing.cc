#include "tests/serving/scheduler/scheduler_testing.h"

#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"

namespace ultrasketch {

SchedulerOptions SmallOptions(int64_t num_blocks, int64_t block_size) {
  SchedulerOptions options;
  options.num_blocks = num_blocks;
  options.block_size = block_size;
  options.max_context_tokens = 1000;
  options.max_step_tokens = 16;
  options.max_step_logits = 8;
  options.max_running_sequences = 4;
  return options;
}

SequenceSpec Spec(SequenceId id, int64_t num_tokens, int64_t max_num_tokens, int32_t priority) {
  SequenceSpec spec;
  spec.id = id;
  spec.token_ids.resize(static_cast<size_t>(num_tokens));
  std::iota(spec.token_ids.begin(), spec.token_ids.end(), static_cast<int32_t>(100 * id));
  spec.max_num_tokens = max_num_tokens;
  spec.priority = priority;
  return spec;
}

SequenceSpec Sibling(SequenceId id, SequenceId source, int64_t num_tokens, int32_t priority) {
  SequenceSpec spec = Spec(source, num_tokens, num_tokens + 8, priority);
  spec.id = id;
  return spec;
}

void Submit(Scheduler& scheduler, SequenceSpec spec) {
  ASSERT_TRUE(scheduler.Submit(std::move(spec)).ok());
}

std::string Describe(const StepPlan& plan) {
  std::vector<std::string> parts;
  for (size_t i = 0; i < plan.slices.size(); ++i) {
    const SequenceSlice& slice = plan.slices[i];
    parts.push_back(absl::StrCat(plan.sequences[i].id, ":", slice.num_cached, "+",
                                 slice.num_tokens(), "(", slice.num_logits, ")",
                                 plan.sequences[i].is_last_chunk ? "*" : ""));
  }
  for (const SequenceId id : plan.preempted) parts.push_back(absl::StrCat("-", id));
  return absl::StrJoin(parts, " ");
}

std::vector<SequenceOutput> NextTokens(const StepPlan& plan, std::vector<int32_t> token_ids) {
  std::vector<SequenceOutput> outputs;
  for (const ScheduledSequence& s : plan.sequences) {
    if (s.is_last_chunk) outputs.push_back({s.id, token_ids, /*ended=*/false});
  }
  return outputs;
}

std::string Step(Scheduler& scheduler) {
  const StepPlan plan = scheduler.Schedule();
  const std::string description = Describe(plan);
  scheduler.Update(plan, NextTokens(plan));
  return description;
}

}  // namespace ultrasketch
