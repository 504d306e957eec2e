// Decides what each step of a model computes. Pure: no threads, no clock, no device; the same calls
// give the same decisions.
//
// There is no prefill phase and no decode phase: a sequence has tokens, of which some are computed
// (their keys and values are in the cache), and a step moves the second number toward the first.
// A step serves the running sequences first, then admits waiting ones, under one budget of tokens;
// a prompt larger than what is left of the budget is computed in chunks.
//
// Order is by priority, then by arrival, for admission as well as for memory: when the cache is
// full, the running sequence that comes last in this order is preempted: it loses its blocks, keeps
// its tokens and waits for being computed again.
//
// What holds, and the tests check:
//   - every running sequence advances by at least one token in every step;
//   - nothing is admitted past a waiting sequence that comes before it;
//   - as long as there is a sequence, a step is not empty: the first in order can always have the
//     whole cache, and a sequence that would need more is refused at Submit.
#ifndef ULTRASKETCH_ENGINE_SERVING_SCHEDULER_SCHEDULER_H_
#define ULTRASKETCH_ENGINE_SERVING_SCHEDULER_SCHEDULER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/types/span.h"

#include "engine/kv/block_pool.h"
#include "engine/kv/sequence_slice.h"

namespace ultrasketch {

using SequenceId = uint64_t;

// All at least 1.
struct SchedulerOptions {
  int64_t num_blocks = 0;
  int64_t block_size = 16;             // tokens in a block
  int64_t max_context_tokens = 0;      // most tokens of a sequence
  int64_t max_step_tokens = 512;       // token budget of a step
  int64_t max_step_logits = 256;       // most rows of logits in a step
  int64_t max_running_sequences = 64;  // lowered to the two above: each needs a token and a row
};

struct SequenceSpec {
  SequenceId id = 0;               // unique among the sequences that the scheduler holds
  std::vector<int32_t> token_ids;  // at least one
  int64_t max_num_tokens = 0;      // most tokens that the sequence will ever have here
  int32_t priority = 0;            // lower is served first

  // Logits are wanted from this position on; unset: of the last token alone. Of tokens appended
  // together, too, the last one's alone. A position's logits are given once, also when the sequence
  // is preempted and computed again.
  std::optional<int64_t> first_logit_position;

  // A sequence submitted before, of the same priority, whose first `num_shared_tokens` tokens are
  // the same. If it runs when this one is admitted, their full blocks are shared.
  std::optional<SequenceId> prefix_source;
  int64_t num_shared_tokens = 0;
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

  // Puts a sequence behind those waiting with the same priority. CheckFits' errors.
  absl::Status Submit(SequenceSpec spec);

  // Plans a step and allocates its blocks. When the step has been computed call Update; when it
  // failed, Schedule again or Remove its sequences: they stand where they stood.
  StepPlan Schedule();

  // The plan that Schedule returned last has been computed, with these outputs: tokens only for
  // sequences whose tokens are all computed now. Sequences that were removed since are ignored.
  void Update(const StepPlan& plan, absl::Span<const SequenceOutput> outputs);

  // Forgets a sequence, running or waiting, and releases its blocks at once: it was cancelled or
  // failed. Unknown ids are ignored.
  void Remove(SequenceId id);

  const SchedulerOptions& options() const { return options_; }
  const BlockPool& block_pool() const { return pool_; }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t num_preemptions() const { return num_preemptions_; }  // since construction

  // The blocks that a sequence holds; none while it waits.
  absl::Span<const BlockId> blocks(SequenceId id) const;

 private:
  struct Sequence;
  // How much of a step is left.
  struct Budget {
    int64_t tokens;
    int64_t logits;
  };

  Sequence& Get(SequenceId id) const;
  int64_t BlocksForTokens(int64_t num_tokens) const;
  bool GrowOrPreempt(Sequence& sequence, StepPlan& plan);
  void Preempt(Sequence& sequence, StepPlan& plan);
  bool Admit(Sequence& sequence);
  void PlanChunk(const Sequence& sequence, Budget allowance, StepPlan& plan, Budget& budget);

  SchedulerOptions options_;
  BlockPool pool_;
  absl::flat_hash_map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  // Both in order of priority, then arrival.
  std::vector<Sequence*> running_;
  std::vector<Sequence*> waiting_;
  uint64_t next_arrival_ = 0;
  int64_t num_preemptions_ = 0;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_SERVING_SCHEDULER_SCHEDULER_H_
