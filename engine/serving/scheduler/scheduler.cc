#include "engine/serving/scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/check.h"
#include "engine/base/status.h"

namespace ultrasketch {

struct Scheduler::Sequence {
  SequenceId id = 0;
  int32_t priority = 0;
  uint64_t arrival = 0;
  int64_t max_num_tokens = 0;
  std::vector<int32_t> token_ids;
  int64_t num_submitted_tokens = 0;  // the rest was appended
  int64_t num_computed = 0;          // of token_ids, in the cache
  int64_t next_logit_position = 0;   // logits before it are not wanted or were given
  std::vector<BlockId> blocks;
  std::optional<SequenceId> prefix_source;
  int64_t num_shared_tokens = 0;

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
};

namespace {

// Works on any pointer to something with a priority and an arrival.
constexpr auto kServedBefore = [](const auto* a, const auto* b) {
  return std::pair(a->priority, a->arrival) < std::pair(b->priority, b->arrival);
};

template <typename T>
void InsertInOrder(std::vector<T*>& queue, T* sequence) {
  queue.insert(std::upper_bound(queue.begin(), queue.end(), sequence, kServedBefore), sequence);
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options), pool_(options.num_blocks) {
  US_CHECK(options.num_blocks >= 1 && options.block_size >= 1 && options.max_context_tokens >= 1);
  US_CHECK(options.max_step_tokens >= 1 && options.max_step_logits >= 1);
  US_CHECK(options.max_running_sequences >= 1);
  options_.max_running_sequences =
      std::min({options.max_running_sequences, options.max_step_tokens, options.max_step_logits});
}

Scheduler::~Scheduler() = default;

absl::Status Scheduler::CheckFits(const SchedulerOptions& options, int64_t max_num_tokens) {
  if (max_num_tokens > options.max_context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("a sequence of ", max_num_tokens,
                                                   " tokens exceeds the context of ",
                                                   options.max_context_tokens, " tokens"));
  }
  const int64_t capacity = options.num_blocks * options.block_size;
  if (max_num_tokens > capacity) {
    return absl::InvalidArgumentError(absl::StrCat("a sequence of ", max_num_tokens,
                                                   " tokens can never fit into the KV cache of ",
                                                   capacity, " tokens"));
  }
  return absl::OkStatus();
}

absl::Status Scheduler::Submit(SequenceSpec spec) {
  US_CHECK(!spec.token_ids.empty());
  const int64_t num_tokens = static_cast<int64_t>(spec.token_ids.size());
  US_CHECK(num_tokens <= spec.max_num_tokens);
  US_CHECK(spec.num_shared_tokens >= 0 && spec.num_shared_tokens <= num_tokens);
  US_RETURN_IF_ERROR(CheckFits(options_, spec.max_num_tokens));

  auto sequence = std::make_unique<Sequence>();
  sequence->id = spec.id;
  sequence->priority = spec.priority;
  sequence->arrival = next_arrival_++;
  sequence->max_num_tokens = spec.max_num_tokens;
  sequence->token_ids = std::move(spec.token_ids);
  sequence->num_submitted_tokens = num_tokens;
  sequence->next_logit_position = spec.first_logit_position.value_or(num_tokens - 1);
  US_CHECK(sequence->next_logit_position >= 0 && sequence->next_logit_position < num_tokens);
  sequence->prefix_source = spec.prefix_source;
  sequence->num_shared_tokens = spec.num_shared_tokens;

  InsertInOrder(waiting_, sequence.get());
  const bool is_new = sequences_.emplace(spec.id, std::move(sequence)).second;
  US_CHECK(is_new);
  return absl::OkStatus();
}

StepPlan Scheduler::Schedule() {
  StepPlan plan;
  Budget budget{options_.max_step_tokens, options_.max_step_logits};

  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (!GrowOrPreempt(sequence, plan)) break;
    // The sequences behind this one keep a token and a row each, so that a long prompt does not
    // stop them.
    const int64_t num_behind = num_running() - static_cast<int64_t>(i) - 1;
    PlanChunk(sequence, {budget.tokens - num_behind, budget.logits - num_behind}, plan, budget);
  }

  // What was preempted is among the waiting, and would come back at once to be preempted again.
  if (!plan.preempted.empty()) return plan;

  while (!waiting_.empty() && num_running() < options_.max_running_sequences && budget.tokens > 0 &&
         budget.logits > 0) {
    Sequence& sequence = *waiting_.front();
    if (!Admit(sequence)) break;
    waiting_.erase(waiting_.begin());
    InsertInOrder(running_, &sequence);
    PlanChunk(sequence, budget, plan, budget);
  }
  return plan;
}

// Gives a running sequence blocks for all its tokens, preempting from the back of the order. False
// when the sequence itself was the last.
bool Scheduler::GrowOrPreempt(Sequence& sequence, StepPlan& plan) {
  const int64_t num_missing =
      BlocksForTokens(sequence.num_tokens()) - static_cast<int64_t>(sequence.blocks.size());
  while (!pool_.Allocate(num_missing, sequence.blocks)) {
    Sequence& victim = *running_.back();
    Preempt(victim, plan);
    if (&victim == &sequence) return false;
  }
  return true;
}

void Scheduler::Preempt(Sequence& sequence, StepPlan& plan) {
  US_CHECK(running_.back() == &sequence);
  running_.pop_back();
  pool_.Release(sequence.blocks);
  sequence.blocks.clear();
  sequence.num_computed = 0;
  InsertInOrder(waiting_, &sequence);
  plan.preempted.push_back(sequence.id);
  ++num_preemptions_;
}

// Gives a waiting sequence the blocks of all its tokens, not of its first chunk alone: a prompt
// that is admitted gets through. False when it has to wait.
bool Scheduler::Admit(Sequence& sequence) {
  // Blocks that hold the right keys and values already. A prefix cache looks here. At least the
  // last token is computed anew, for its logits, and every token whose logits are wanted.
  int64_t num_shared_blocks = 0;
  const Sequence* source = nullptr;
  if (sequence.prefix_source.has_value()) {
    const auto found = sequences_.find(*sequence.prefix_source);
    if (found != sequences_.end() && !found->second->blocks.empty()) source = found->second.get();
  }
  if (source != nullptr) {
    num_shared_blocks = std::min({sequence.num_shared_tokens, sequence.num_tokens() - 1,
                                  sequence.next_logit_position, source->num_tokens()}) /
                        options_.block_size;
    // The source is at work on them: sharing costs a wait, computing them again as long as that.
    if (source->num_computed < num_shared_blocks * options_.block_size) return false;
  }

  const int64_t num_new_blocks = BlocksForTokens(sequence.num_tokens()) - num_shared_blocks;
  // Room for each running sequence to grow by a block: without it the newcomer would soon be
  // preempted, and its prompt computed for nothing.
  const int64_t headroom = num_running();
  if (num_new_blocks + headroom > pool_.num_free()) return false;

  for (int64_t i = 0; i < num_shared_blocks; ++i) {
    const BlockId block = source->blocks[static_cast<size_t>(i)];
    pool_.Share(block);
    sequence.blocks.push_back(block);
  }
  sequence.num_computed = num_shared_blocks * options_.block_size;
  US_CHECK(pool_.Allocate(num_new_blocks, sequence.blocks));
  return true;
}

// Plans as many of the sequence's tokens as the allowance, at least one token and one row, permits.
void Scheduler::PlanChunk(const Sequence& sequence, Budget allowance, StepPlan& plan,
                          Budget& budget) {
  US_CHECK(allowance.tokens >= 1 && allowance.logits >= 1);
  const int64_t begin = sequence.num_computed;
  US_CHECK(begin < sequence.num_tokens());
  const int64_t first_logit = std::max(begin, sequence.next_logit_position);
  const int64_t end =
      std::min({sequence.num_tokens(), begin + allowance.tokens, first_logit + allowance.logits});

  SequenceSlice slice;
  slice.token_ids = absl::MakeConstSpan(sequence.token_ids)
                        .subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  slice.num_cached = begin;
  slice.blocks = sequence.blocks;
  slice.num_logits = std::max<int64_t>(0, end - first_logit);
  plan.slices.push_back(slice);
  plan.sequences.push_back({.id = sequence.id,
                            .first_logits_row = plan.num_logits,
                            .is_last_chunk = end == sequence.num_tokens()});

  budget.tokens -= end - begin;
  budget.logits -= slice.num_logits;
  plan.num_tokens += end - begin;
  if (begin >= sequence.num_submitted_tokens && begin + 1 == sequence.num_tokens()) {
    ++plan.num_decode_tokens;
  }
  plan.num_logits += slice.num_logits;
}

void Scheduler::Update(const StepPlan& plan, absl::Span<const SequenceOutput> outputs) {
  for (size_t i = 0; i < plan.slices.size(); ++i) {
    const auto found = sequences_.find(plan.sequences[i].id);
    if (found == sequences_.end()) continue;
    Sequence& sequence = *found->second;
    US_CHECK(sequence.num_computed == plan.slices[i].num_cached);
    sequence.num_computed += plan.slices[i].num_tokens();
    sequence.next_logit_position = std::max(sequence.next_logit_position, sequence.num_computed);
  }
  for (const SequenceOutput& output : outputs) {
    const auto found = sequences_.find(output.id);
    if (found == sequences_.end()) continue;
    if (output.ended) {
      Remove(output.id);
      continue;
    }
    Sequence& sequence = *found->second;
    if (output.token_ids.empty()) continue;
    US_CHECK(sequence.num_computed == sequence.num_tokens());
    sequence.token_ids.insert(sequence.token_ids.end(), output.token_ids.begin(),
                              output.token_ids.end());
    US_CHECK(sequence.num_tokens() <= sequence.max_num_tokens);
    sequence.next_logit_position = sequence.num_tokens() - 1;
  }
}

void Scheduler::Remove(SequenceId id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  Sequence* sequence = found->second.get();
  pool_.Release(sequence->blocks);
  std::erase(running_, sequence);
  std::erase(waiting_, sequence);
  sequences_.erase(found);
}

absl::Span<const BlockId> Scheduler::blocks(SequenceId id) const { return Get(id).blocks; }

Scheduler::Sequence& Scheduler::Get(SequenceId id) const {
  const auto found = sequences_.find(id);
  US_CHECK(found != sequences_.end());
  return *found->second;
}

int64_t Scheduler::BlocksForTokens(int64_t num_tokens) const {
  return (num_tokens + options_.block_size - 1) / options_.block_size;
}

}  // namespace ultrasketch
