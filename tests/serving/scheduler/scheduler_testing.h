// What the tests of the scheduler share: sequences, and plans as strings.
#ifndef ULTRASKETCH_TESTS_SERVING_SCHEDULER_SCHEDULER_TESTING_H_
#define ULTRASKETCH_TESTS_SERVING_SCHEDULER_SCHEDULER_TESTING_H_

#include <cstdint>
#include <string>
#include <vector>

#include "engine/serving/scheduler/scheduler.h"

namespace ultrasketch {

// 16 tokens and 8 rows a step, four sequences at a time.
SchedulerOptions SmallOptions(int64_t num_blocks = 100, int64_t block_size = 4);

// Tokens 100 * id and up: sequences of different ids have no common beginning.
SequenceSpec Spec(SequenceId id, int64_t num_tokens, int64_t max_num_tokens, int32_t priority = 0);

// The same tokens as those of Spec(source, ...).
SequenceSpec Sibling(SequenceId id, SequenceId source, int64_t num_tokens, int32_t priority = 0);

// A sequence that must be accepted.
void Submit(Scheduler& scheduler, SequenceSpec spec);

// "1:0+16(0) 2:3+1(1)* -3": id, tokens in the cache, new tokens, rows of logits; a star when the
// next token is to be sampled; a minus before what is preempted.
std::string Describe(const StepPlan& plan);

// An output of these tokens for each sequence that a token is due for.
std::vector<SequenceOutput> NextTokens(const StepPlan& plan, std::vector<int32_t> token_ids = {7});

// Plans a step, computes it, and appends a token where one is due.
std::string Step(Scheduler& scheduler);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_SERVING_SCHEDULER_SCHEDULER_TESTING_H_
