// Decides what each step of a model computes. Pure: no threads, no clock, no device; the same calls
// give the same decisions.
//
// There is no prefill phase and no decode phase: a sequence has tokens, of which some are computed
// (their keys and values are in the cache), and a step moves the second number toward the first.
// Running sequences are served in order of priority, then of arrival; who of the waiting is next,
// waiting_queue.h says (priority, ageing, fairness between clients), and how a step's tokens are
// shared, share_step.h. A prompt larger than its share is computed in chunks.
//
// Full blocks are shared between sequences that begin alike (engine/kv/prefix_cache.h). A sequence
// whose beginning is being computed by one that is served before it waits for that.
//
// Preemption: a sequence loses its blocks, keeps its tokens and waits; what of it is still in the
// prefix cache when it is admitted again is not computed again. It comes about
//   - when a running sequence needs a block and none is free: the last in order makes room;
//   - when a waiting sequence has a better priority than a running one (by itself, not by having
//     waited; the running one's is the effective one that it was admitted with), and the slots or
//     blocks that it lacks can be had from such ones: the last in order make room. Nothing is
//     preempted for an equal priority, or in vain.
//
// A waiting sequence that cannot be admitted, for lack of blocks or because its prompt would get no
// share of the step, is passed by those behind it that can, unless it could preempt them again.
// Passing one that lacks blocks, or taking the last slot before one, is counted: after max_passes
// of them nothing passes it any more.
//
// What holds, and the tests check:
//   - every running sequence advances by at least one token in every step;
//   - a step stays within its tokens, rows and running sequences;
//   - within a priority and a client, and order of arrival, a sequence that lacks blocks is passed
//     at most max_passes times;
//   - nothing starves: what waits gets ahead of any other priority in the end, and keeps when it is
//     preempted what it has gained;
//   - as long as there is a sequence, a step is not empty: the first in order can always have the
//     whole cache, and a sequence that would need more is refused at Submit;
//   - blocks are held by the sequences that run, and by nobody else.
//
// A step costs O(R + B + L + K * (log L + P + F)) with R sequences running, P of them at more than
// one token, B blocks filled, allocated or released, L lanes in the queue, K waiting sequences
// considered (those admitted and at most 256 others) and F blocks found for one of them; O(R + B)
// while all slots are taken and nobody may preempt.
#ifndef ULTRASKETCH_ENGINE_SERVING_SCHEDULER_SCHEDULER_H_
#define ULTRASKETCH_ENGINE_SERVING_SCHEDULER_SCHEDULER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/types/span.h"

#include "engine/kv/prefix_cache.h"
#include "engine/kv/sequence_slice.h"
#include "engine/serving/scheduler/sequence.h"
#include "engine/serving/scheduler/waiting_queue.h"

namespace ultrasketch {

// Numbers are at least 1.
struct SchedulerOptions {
  int64_t num_blocks = 0;
  int64_t block_size = 16;             // tokens in a block
  int64_t max_context_tokens = 0;      // most tokens of a sequence
  int64_t max_step_tokens = 512;       // token budget of a step
  int64_t max_step_logits = 256;       // most rows of logits in a step
  int64_t max_running_sequences = 64;  // lowered to the two above: each needs a token and a row
  bool prefix_cache = true;            // false: every prompt is computed in full
  int64_t ageing_steps = 256;          // see waiting_queue.h
  int64_t max_passes = 64;             // of a waiting sequence, by those behind it
};

struct SequenceSpec {
  SequenceId id = 0;               // unique among the sequences that the scheduler holds
  std::vector<int32_t> token_ids;  // at least one
  int64_t max_num_tokens = 0;      // most tokens that the sequence will ever have here
  int32_t priority = 0;            // lower is served first
  std::string client;              // sequences of equal clients share what is one client's due

  // Logits are wanted from this position on; unset: of the last token alone. Of tokens appended
  // together, too, the last one's alone. A position's logits are given once, also when the sequence
  // is preempted and computed again.
  std::optional<int64_t> first_logit_position;
};

// What the scheduler knows of a slice and the model need not.
struct ScheduledSequence {
  SequenceId id = 0;
  int64_t first_logits_row = 0;  // the slice's rows, among all rows of the step, begin here
  bool is_last_chunk = false;    // all tokens are computed after this step: sample the next
};

struct StepPlan {
  // What to compute, as Model::Forward takes it. The spans are valid until the next call of Update,
  // Remove or Schedule.
  std::vector<SequenceSlice> slices;
  std::vector<ScheduledSequence> sequences;  // parallel to slices
  std::vector<SequenceId> preempted;         // in this call
  int64_t num_tokens = 0;
  int64_t num_decode_tokens = 0;  // of num_tokens: each the one missing token of its sequence, and
                                  // generated, not submitted
  int64_t num_logits = 0;
};

// What became of a sequence in a step.
struct SequenceOutput {
  SequenceId id = 0;
  std::vector<int32_t> token_ids;  // to be appended: none, one, or several at once
  bool ended = false;              // it is forgotten, and its blocks are released
};

// Prompt tokens of the sequences admitted so far, each counted at its first admission.
struct PrefixCacheCounts {
  int64_t num_hit_tokens = 0;   // found
  int64_t num_miss_tokens = 0;  // computed
};

// Not thread-safe.
class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);
  ~Scheduler();

  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // INVALID_ARGUMENT when a sequence of `max_num_tokens` exceeds the context or could never fit
  // into the cache, even alone. A function of the options alone.
  static absl::Status CheckFits(const SchedulerOptions& options, int64_t max_num_tokens);

  // A new sequence waits. CheckFits' errors.
  absl::Status Submit(SequenceSpec spec);

  // Plans a step and allocates its blocks. When the step has been computed call Update; when it
  // failed, Schedule again or Remove its sequences: they stand where they stood.
  StepPlan Schedule();

  // The plan that Schedule returned last has been computed, with these outputs: for each sequence
  // whose tokens are all computed now, tokens or the end; for others nothing, or the end. Sequences
  // that were removed since are ignored. Blocks that have filled up are shared from now on.
  void Update(const StepPlan& plan, absl::Span<const SequenceOutput> outputs);

  // Forgets a sequence, running or waiting, and releases its blocks at once: it was cancelled or
  // failed. Unknown ids are ignored.
  void Remove(SequenceId id);

  // PrefixCache::TakeUnused.
  std::vector<BlockId> TakeUnusedBlocks() { return cache_.TakeUnused(); }

  const SchedulerOptions& options() const { return options_; }
  const PrefixCache& cache() const { return cache_; }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_waiting() const { return queue_.num_waiting(); }
  int64_t num_preemptions() const { return num_preemptions_; }  // since construction
  const PrefixCacheCounts& prefix_cache_counts() const { return prefix_cache_counts_; }

  // The blocks that a sequence holds; none while it waits.
  absl::Span<const BlockId> blocks(SequenceId id) const;

 private:
  using Sequence = SchedulerSequence;
  enum class Admission : uint8_t { kAdmitted, kLacksTokens, kLacksBlocks, kWaitsForPrefix };

  int64_t BlocksForTokens(int64_t num_tokens) const;
  int64_t MaxFoundBlocks(const Sequence& sequence) const;
  void GrowRunning(StepPlan& plan);
  void AdmitWaiting(StepPlan& plan);
  Admission Admit(Sequence& sequence, absl::Span<const Sequence* const> prefilling, StepPlan& plan);
  bool MakeRoom(const Sequence& sequence, int64_t num_blocks, StepPlan& plan);
  bool WouldGetShare(const Sequence& sequence, int64_t effective_priority,
                     absl::Span<const Sequence* const> prefilling) const;
  bool WaitsForPrefix(const Sequence& sequence, int64_t effective_priority,
                      absl::Span<const Sequence* const> prefilling,
                      absl::Span<const BlockId> found) const;
  void PreemptLast(StepPlan& plan);
  void PlanSlices(StepPlan& plan) const;
  void RegisterFullBlocks(Sequence& sequence);
  // The running sequences that miss more than one token.
  std::vector<const Sequence*> Prefilling() const;

  SchedulerOptions options_;
  PrefixCache cache_;
  absl::flat_hash_map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  std::vector<Sequence*> running_;  // in order of service
  WaitingQueue queue_;
  int64_t num_steps_ = 0;  // computed
  uint64_t next_arrival_ = 0;
  int64_t num_preemptions_ = 0;
  PrefixCacheCounts prefix_cache_counts_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_SERVING_SCHEDULER_SCHEDULER_H_
