#include "engine/serving/scheduler/scheduler.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/serving/scheduler/share_step.h"

namespace ultrasketch {
namespace {

// Waiting sequences that are considered in a step without being admitted.
constexpr size_t kMaxSkipped = 256;

// Whether a running sequence is served before one that is to be admitted with this priority.
bool IsBefore(const SchedulerSequence& running, const SchedulerSequence& waiting,
              int64_t effective_priority) {
  return std::pair(running.effective_priority, running.arrival) <
         std::pair(effective_priority, waiting.arrival);
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options),
      cache_(options.num_blocks, options.block_size, options.prefix_cache),
      queue_(options.ageing_steps) {
  US_CHECK(options.num_blocks >= 1 && options.block_size >= 1 && options.max_context_tokens >= 1);
  US_CHECK(options.max_step_tokens >= 1 && options.max_step_logits >= 1);
  US_CHECK(options.max_running_sequences >= 1 && options.max_passes >= 1);
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
  US_RETURN_IF_ERROR(CheckFits(options_, spec.max_num_tokens));

  auto owned = std::make_unique<Sequence>();
  Sequence& sequence = *owned;
  sequence.id = spec.id;
  sequence.priority = spec.priority;
  sequence.client = std::move(spec.client);
  sequence.arrival = next_arrival_++;
  sequence.max_num_tokens = spec.max_num_tokens;
  sequence.token_ids = std::move(spec.token_ids);
  sequence.num_submitted_tokens = num_tokens;
  sequence.next_logit_position = spec.first_logit_position.value_or(num_tokens - 1);
  US_CHECK(sequence.next_logit_position >= 0 && sequence.next_logit_position < num_tokens);
  sequence.num_expected_cached =
      static_cast<int64_t>(cache_.Find(sequence.token_ids, MaxFoundBlocks(sequence)).size()) *
      options_.block_size;

  const bool is_new = sequences_.emplace(spec.id, std::move(owned)).second;
  US_CHECK(is_new);
  queue_.Add(&sequence, num_steps_);
  return absl::OkStatus();
}

StepPlan Scheduler::Schedule() {
  StepPlan plan;
  GrowRunning(plan);
  // What was preempted just now would come back to be preempted again.
  if (plan.preempted.empty() && queue_.num_waiting() > 0) AdmitWaiting(plan);
  PlanSlices(plan);
  return plan;
}

// Gives the running sequences blocks for all their tokens, preempting from the back of the order.
void Scheduler::GrowRunning(StepPlan& plan) {
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    const int64_t num_missing =
        BlocksForTokens(sequence.num_tokens()) - static_cast<int64_t>(sequence.blocks.size());
    while (i < running_.size() && !cache_.Allocate(num_missing, sequence.blocks)) {
      PreemptLast(plan);
    }
  }
}

void Scheduler::PreemptLast(StepPlan& plan) {
  Sequence& sequence = *running_.back();
  running_.pop_back();
  cache_.Release(sequence.blocks);
  sequence.blocks.clear();
  sequence.num_computed = 0;
  sequence.num_registered = 0;
  queue_.Preempt(&sequence, num_steps_);
  plan.preempted.push_back(sequence.id);
  ++num_preemptions_;
}

void Scheduler::AdmitWaiting(StepPlan& plan) {
  const auto is_full = [this] { return num_running() >= options_.max_running_sequences; };
  const auto may_preempt = [this](int64_t priority) {
    return !running_.empty() && priority < running_.back()->effective_priority;
  };
  struct Skipped {
    Sequence* sequence;
    Admission why;
  };
  std::vector<Skipped> skipped;
  int64_t best_skipped_priority = std::numeric_limits<int64_t>::max();
  int64_t best_preempted_priority = std::numeric_limits<int64_t>::max();

  std::vector<const Sequence*> prefilling = Prefilling();
  WaitingQueue::Pass pass(queue_, num_steps_);
  while (queue_.num_waiting() > 0 && (!is_full() || may_preempt(queue_.best_priority()))) {
    Sequence* const sequence = pass.Next();
    if (sequence == nullptr) return;
    if (is_full() && !may_preempt(sequence->priority)) continue;
    // One that was skipped would preempt it in a later step, or one that was preempted in this pass
    // stands before it.
    if (best_skipped_priority < queue_.EffectivePriorityAt(*sequence, num_steps_) ||
        sequence->priority >= best_preempted_priority) {
      continue;
    }

    const Admission admission = Admit(*sequence, prefilling, plan);
    if (admission != Admission::kAdmitted) {
      if (sequence->num_passed >= options_.max_passes) return;
      skipped.push_back({sequence, admission});
      if (skipped.size() >= kMaxSkipped) return;
      best_skipped_priority = std::min<int64_t>(best_skipped_priority, sequence->priority);
      continue;
    }
    prefilling = Prefilling();
    for (const SequenceId id : plan.preempted) {
      best_preempted_priority =
          std::min(best_preempted_priority, sequences_.find(id)->second->effective_priority);
    }
    bool may_pass = true;
    for (const Skipped& other : skipped) {
      if (other.why != Admission::kLacksBlocks && !is_full()) continue;
      if (++other.sequence->num_passed >= options_.max_passes) may_pass = false;
    }
    if (!may_pass) return;
  }
}

std::vector<const Scheduler::Sequence*> Scheduler::Prefilling() const {
  std::vector<const Sequence*> prefilling;
  for (const Sequence* sequence : running_) {
    if (sequence->num_missing() > 1) prefilling.push_back(sequence);
  }
  return prefilling;
}

// Gives a waiting sequence the blocks of all its tokens, not of its first chunk alone: a prompt
// that is admitted gets through.
Scheduler::Admission Scheduler::Admit(Sequence& sequence,
                                      absl::Span<const Sequence* const> prefilling,
                                      StepPlan& plan) {
  const int64_t effective_priority = queue_.EffectivePriorityAt(sequence, num_steps_);
  if (!WouldGetShare(sequence, effective_priority, prefilling)) return Admission::kLacksTokens;

  const std::vector<BlockId> found = cache_.Find(sequence.token_ids, MaxFoundBlocks(sequence));
  const auto num_found = static_cast<int64_t>(found.size());
  sequence.num_expected_cached = num_found * options_.block_size;
  if (WaitsForPrefix(sequence, effective_priority, prefilling, found))
    return Admission::kWaitsForPrefix;

  cache_.Share(found);
  const int64_t num_new_blocks = BlocksForTokens(sequence.num_tokens()) - num_found;
  if (!MakeRoom(sequence, num_new_blocks, plan)) {
    cache_.Release(found);
    return Admission::kLacksBlocks;
  }
  sequence.blocks = found;
  US_CHECK(cache_.Allocate(num_new_blocks, sequence.blocks));
  sequence.num_computed = num_found * options_.block_size;
  sequence.num_registered = num_found;
  sequence.num_passed = 0;
  if (!std::exchange(sequence.was_admitted, true)) {
    prefix_cache_counts_.num_hit_tokens += sequence.num_computed;
    prefix_cache_counts_.num_miss_tokens += sequence.num_missing();
  }
  queue_.Start(&sequence, sequence.num_missing(), num_steps_);
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &sequence, IsServedBefore),
                  &sequence);
  return Admission::kAdmitted;
}

bool Scheduler::WouldGetShare(const Sequence& sequence, int64_t effective_priority,
                              absl::Span<const Sequence* const> prefilling) const {
  const int64_t num_missing = sequence.num_tokens() - sequence.num_expected_cached;
  OthersMissing others;
  for (const Sequence* other : prefilling) {
    const int64_t num_others = other->num_missing() - 1;
    others.all += num_others;
    if (IsBefore(*other, sequence, effective_priority)) others.before += num_others;
    if (other->num_missing() <= num_missing) others.shorter += num_others;
  }
  return ultrasketch::WouldGetShare(num_missing, num_running(), others, options_.max_step_tokens);
}

// Whether the block after those found is being computed by a sequence that is served before this
// one: sharing it costs a wait, computing it again would take as long.
bool Scheduler::WaitsForPrefix(const Sequence& sequence, int64_t effective_priority,
                               absl::Span<const Sequence* const> prefilling,
                               absl::Span<const BlockId> found) const {
  const auto num_found = static_cast<int64_t>(found.size());
  if (!cache_.is_enabled() || num_found >= MaxFoundBlocks(sequence)) return false;
  const auto block_tokens = [&](const Sequence& s) {
    return absl::MakeConstSpan(s.token_ids)
        .subspan(static_cast<size_t>(num_found * options_.block_size),
                 static_cast<size_t>(options_.block_size));
  };
  for (const Sequence* other : prefilling) {
    if (!IsBefore(*other, sequence, effective_priority) ||
        other->num_tokens() < (num_found + 1) * options_.block_size) {
      continue;
    }
    const bool begins_alike =
        num_found == 0 || other->blocks[static_cast<size_t>(num_found) - 1] == found.back();
    if (begins_alike && block_tokens(*other) == block_tokens(sequence)) return true;
  }
  return false;
}

// Preempts what a waiting sequence may preempt, as far as it lacks a slot or blocks, if that is
// enough; nothing otherwise. Counts room for each running sequence to grow by a block: without it
// the newcomer would soon be preempted, and its prompt computed for nothing.
bool Scheduler::MakeRoom(const Sequence& sequence, int64_t num_blocks, StepPlan& plan) {
  int64_t num_left = num_running();
  int64_t num_free = cache_.pool().num_free();
  absl::flat_hash_map<BlockId, int32_t> num_released;  // references
  while (num_left >= options_.max_running_sequences || num_blocks + num_left > num_free) {
    if (num_left == 0) return false;
    const Sequence& last = *running_[static_cast<size_t>(num_left) - 1];
    if (sequence.priority >= last.effective_priority) return false;
    for (const BlockId block : last.blocks) {
      if (++num_released[block] == cache_.pool().reference_count(block)) ++num_free;
    }
    --num_left;
  }
  while (num_running() > num_left) PreemptLast(plan);
  return true;
}

void Scheduler::PlanSlices(StepPlan& plan) const {
  std::vector<StepClaim> claims;
  claims.reserve(running_.size());
  for (const Sequence* sequence : running_) {
    claims.push_back({sequence->num_missing(), std::max<int64_t>(0, sequence->next_logit_position -
                                                                        sequence->num_computed)});
  }
  const std::vector<int64_t> grants =
      ShareStep(claims, options_.max_step_tokens, options_.max_step_logits);

  for (size_t i = 0; i < running_.size(); ++i) {
    const Sequence& sequence = *running_[i];
    const int64_t begin = sequence.num_computed;
    SequenceSlice slice;
    slice.token_ids = absl::MakeConstSpan(sequence.token_ids)
                          .subspan(static_cast<size_t>(begin), static_cast<size_t>(grants[i]));
    slice.num_cached = begin;
    slice.blocks = sequence.blocks;
    slice.num_logits = std::max<int64_t>(0, grants[i] - claims[i].num_before_logits);
    plan.slices.push_back(slice);
    plan.sequences.push_back({.id = sequence.id,
                              .first_logits_row = plan.num_logits,
                              .is_last_chunk = slice.end() == sequence.num_tokens()});
    plan.num_tokens += grants[i];
    plan.num_logits += slice.num_logits;
    if (begin >= sequence.num_submitted_tokens && sequence.num_missing() == 1) {
      ++plan.num_decode_tokens;
    }
  }
}

void Scheduler::Update(const StepPlan& plan, absl::Span<const SequenceOutput> outputs) {
  ++num_steps_;
  for (size_t i = 0; i < plan.slices.size(); ++i) {
    const auto found = sequences_.find(plan.sequences[i].id);
    if (found == sequences_.end()) continue;
    Sequence& sequence = *found->second;
    US_CHECK(sequence.num_computed == plan.slices[i].num_cached);
    sequence.num_computed += plan.slices[i].num_tokens();
    sequence.next_logit_position = std::max(sequence.next_logit_position, sequence.num_computed);
    RegisterFullBlocks(sequence);
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
    queue_.Charge(sequence, static_cast<int64_t>(output.token_ids.size()));
  }
}

void Scheduler::RegisterFullBlocks(Sequence& sequence) {
  if (!cache_.is_enabled()) return;
  const int64_t num_full = sequence.num_computed / options_.block_size;
  for (int64_t& i = sequence.num_registered; i < num_full; ++i) {
    const auto index = static_cast<size_t>(i);
    sequence.blocks[index] =
        cache_.Register(i == 0 ? kNoBlock : sequence.blocks[index - 1],
                        absl::MakeConstSpan(sequence.token_ids)
                            .subspan(static_cast<size_t>(i * options_.block_size),
                                     static_cast<size_t>(options_.block_size)),
                        sequence.blocks[index]);
  }
}

void Scheduler::Remove(SequenceId id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  Sequence* const sequence = found->second.get();
  cache_.Release(sequence->blocks);
  if (sequence->is_running) std::erase(running_, sequence);
  queue_.Remove(sequence, num_steps_);
  sequences_.erase(found);
}

absl::Span<const BlockId> Scheduler::blocks(SequenceId id) const {
  const auto found = sequences_.find(id);
  US_CHECK(found != sequences_.end());
  return found->second->blocks;
}

int64_t Scheduler::BlocksForTokens(int64_t num_tokens) const {
  return (num_tokens + options_.block_size - 1) / options_.block_size;
}

// Blocks of a sequence that may be taken from the cache: at least the last token is computed, for
// its logits, and every token whose logits are wanted.
int64_t Scheduler::MaxFoundBlocks(const Sequence& sequence) const {
  return std::min(sequence.num_tokens() - 1, sequence.next_logit_position) / options_.block_size;
}

}  // namespace ultrasketch
