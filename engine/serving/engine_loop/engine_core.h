// What the engine loop does in a step, without its thread and its queue.
#ifndef ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_ENGINE_CORE_H_
#define ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_ENGINE_CORE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"

#include "engine/format/tokenizer/tokenizer.h"
#include "engine/models/model.h"
#include "engine/serving/engine_loop/completion.h"
#include "engine/serving/engine_loop/engine_loop.h"
#include "engine/serving/scheduler/scheduler.h"

namespace ultrasketch {

struct QueuedRequest {
  RequestId id = 0;
  GenerationRequest request;  // valid (ValidateRequest)
  std::shared_ptr<GenerationSink> sink;
  absl::Time arrival;
};

// Something to tell a sink: the end of a completion when `result` is set, else a delta.
struct EngineEvent {
  std::shared_ptr<GenerationSink> sink;
  GenerationDelta delta;
  std::unique_ptr<GenerationResult> result;
  std::optional<RequestId> finished_request;  // set when this is the request's last event
  bool is_first = false;                      // the completion's first delta
};

// The scheduler's options for a model: its limits, lowered to those of `options`.
SchedulerOptions MakeSchedulerOptions(const Model& model, const EngineLoopOptions& options);

// Owns the model, the scheduler and the state of the requests that were added. Not thread-safe.
// Calls the observer directly; what concerns the sinks is collected as events, in order.
class EngineCore {
 public:
  // `observer` may be null.
  EngineCore(std::unique_ptr<Model> model, std::shared_ptr<const Tokenizer> tokenizer,
             const EngineLoopOptions& options, std::shared_ptr<EngineObserver> observer);
  ~EngineCore();

  void Add(QueuedRequest queued);

  // Ends what is unfinished of a request and releases its blocks. Unknown ids are ignored.
  void End(RequestId id, FinishReason reason, const absl::Status& status);
  void EndAll(FinishReason reason, const absl::Status& status);

  // Ends the requests whose deadline is not after `now`.
  void ExpireDeadlines(absl::Time now);

  // One step in two halves: what to compute is decided, then it is computed and sampled. Needs
  // has_requests(); nothing is added or ended in between. An error of the model ends the requests
  // that it concerns, with its status.
  void BeginStep();
  void FinishStep();

  // Gives the memory of those blocks of the KV cache back that nobody has used since the call
  // before, and with it the prefixes in them. Between steps.
  void TrimCache();
  // Whether TrimCache has something to give back, or will have if nothing is used.
  bool has_cache_to_trim() const;

  std::vector<EngineEvent> TakeEvents();

  bool has_requests() const { return !requests_.empty(); }
  // Completions that were never scheduled, and the tokens of their prompts.
  int32_t num_waiting_completions() const { return num_waiting_completions_; }
  int64_t num_waiting_tokens() const { return num_waiting_tokens_; }
  EngineLoopStats stats() const;
  const Model& model() const { return *model_; }

 private:
  struct Sequence;
  struct Request;

  void MarkScheduled(absl::Time now);
  void FailStep(const absl::Status& status);
  void CollectPromptLogprobs();
  void SampleNext();
  void AcceptToken(Sequence& sequence, SampledToken token, absl::Time now);
  void FinishSequence(SequenceId id, FinishReason reason, const absl::Status& status,
                      std::string stop_string, absl::Time now);
  void ReportStep(absl::Time end);

  std::unique_ptr<Model> model_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<EngineObserver> observer_;
  Scheduler scheduler_;

  absl::flat_hash_map<RequestId, std::unique_ptr<Request>> requests_;
  absl::flat_hash_map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  SequenceId next_sequence_id_ = 0;
  int32_t num_waiting_completions_ = 0;
  int32_t num_waiting_requests_ = 0;
  int64_t num_waiting_tokens_ = 0;
  StepPlan plan_;  // of the step at hand; from its first Remove on without the spans
  std::vector<SequenceOutput> outputs_;  // of the step at hand
  absl::Time step_begin_;
  absl::Time step_computed_;  // when Forward returned
  absl::Time step_sampled_;   // when the next tokens had been drawn
  std::vector<EngineEvent> events_;
  std::vector<float> logits_row_;  // [vocab_size]
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_ENGINE_CORE_H_
