// Generation with one model: a queue of requests, one thread that owns the model, continuous
// batching by the scheduler, sampling, detokenization and stop conditions.
#ifndef ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_ENGINE_LOOP_H_
#define ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_ENGINE_LOOP_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "engine/backends/sampling/sampling.h"
#include "engine/backends/step_stages.h"
#include "engine/format/tokenizer/tokenizer.h"
#include "engine/models/model.h"
#include "engine/serving/engine_loop/device_turns.h"

namespace ultrasketch {

struct GenerationRequest {
  std::vector<int32_t> prompt_ids;  // at least one
  SamplingParams sampling;
  // Generation ends with kLength at this many tokens, or at the model's context. 0 only together
  // with prompt_logprobs: the prompt is scored and nothing is generated (see score.h).
  int32_t max_tokens = 256;
  // No end token is chosen, and no stop string looked for, before this many.
  int32_t min_tokens = 0;
  std::vector<std::string> stop;  // at most 16; not empty, UTF-8
  std::vector<int32_t> stop_token_ids;
  std::vector<int32_t> eos_token_ids;   // empty: end tokens are ignored
  bool include_stop_in_output = false;  // text of the stop string or end token; ids always are
  bool skip_special_tokens = true;
  int32_t num_completions = 1;
  int32_t prompt_logprobs = -1;  // -1: none; n: of each prompt token, and of the n most likely
  int32_t priority = 0;          // lower is served first, and preempts
  std::string client;            // requests of equal clients share what is one client's due
  absl::Time deadline = absl::InfiniteFuture();
  // When the request came in: what was done for it before Submit counts as waiting. InfinitePast:
  // it comes in with Submit.
  absl::Time arrival = absl::InfinitePast();
};

enum class FinishReason : uint8_t { kStop, kLength, kCancelled, kError };

// New text and tokens of one completion.
struct GenerationDelta {
  int32_t completion = 0;
  std::string text;  // whole characters; may lag behind the tokens
  std::vector<int32_t> token_ids;
  std::vector<SampledToken> logprobs;  // parallel to token_ids when log-probabilities are wanted
};

struct GenerationTiming {
  absl::Duration queue;        // arrival to first step
  absl::Duration prefill;      // first step to first token
  absl::Duration decode;       // first token to last
  int32_t num_steps = 0;       // that the completion took part in
  double mean_batch_size = 0;  // sequences in those steps
};

struct GenerationResult {
  int32_t completion = 0;
  FinishReason reason = FinishReason::kStop;
  absl::Status status;      // not OK when reason is kError (a passed deadline too) or kCancelled
  std::string stop_string;  // the one that ended it
  int32_t num_prompt_tokens = 0;
  int32_t num_cached_prompt_tokens = 0;  // found in the prefix cache
  int32_t num_completion_tokens = 0;     // an end token included
  GenerationTiming timing;
  // Of the prompt's tokens but the first, when wanted; of completion 0 alone, as they are the same
  // for all.
  std::vector<SampledToken> prompt_logprobs;
};

// Receives a request's events, on the loop's delivery thread, which all sinks share: return quickly
// and never block. The engine does not wait, and may be ahead. OnFinish comes once for each
// completion, nothing for that completion after it; after the last one the sink is released, on the
// same thread. A sink may call Submit and Cancel, but neither Drain, Stop nor the loop's
// destructor.
class GenerationSink {
 public:
  virtual ~GenerationSink() = default;
  virtual void OnDelta(GenerationDelta delta) = 0;
  virtual void OnFinish(GenerationResult result) = 0;
};

// Log-probabilities of every token of a text but the first.
struct ScoreResult {
  std::vector<SampledToken> logprobs;
  double sum_logprob = 0;
};

// What happened in a step, for metrics.
struct StepReport {
  absl::Duration duration;
  int32_t num_prefill_tokens = 0;
  int32_t num_decode_tokens = 0;
  int32_t num_sequences = 0;
  std::optional<StageDurations> stages =
      std::nullopt;  // add up to `duration`; not every step has them
};

// Called on the engine's thread: return quickly. OnScheduled and OnFirstToken come once for a
// request, at the first of its completions; OnInterToken for each further token of a completion.
// May be shared by several loops if it is thread-safe.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  virtual void OnStep(const StepReport& report) = 0;
  virtual void OnFirstToken(absl::Duration since_arrival) = 0;
  virtual void OnInterToken(absl::Duration since_last) = 0;
  virtual void OnScheduled(absl::Duration queued) = 0;
};

struct EngineLoopOptions {
  // What may wait for its first step. n completions count as n, and the tokens of their prompt n
  // times. A request with more tokens than may wait is taken when no others wait.
  int32_t max_queued_requests = 256;
  int64_t max_queued_tokens = 262'144;
  int32_t max_running_sequences = 64;
  int32_t max_step_tokens = 512;  // token budget of a step: prefill comes in chunks of this
  bool prefix_cache = true;       // beginnings of prompts that were computed before are reused
  // A block of the KV cache that nobody has used for so long has its memory back at the system
  // where that comes with use (Model::can_discard_blocks), and what the prefix cache kept there is
  // lost.
  absl::Duration cache_idle_time = absl::Minutes(1);
  // Deltas come at least so long after those before: what is generated meanwhile comes as one.
  // First tokens and ends do not wait.
  absl::Duration delivery_interval = absl::ZeroDuration();
  // Shared by the loops whose models share a device; null: the device is the loop's alone.
  std::shared_ptr<DeviceTurns> turns;
  double weight = 1;  // the loop's share of the device, as DeviceTurns::Join takes it
};

struct EngineLoopStats {
  int32_t num_running = 0;         // requests that have been scheduled, preempted ones too
  int32_t num_waiting = 0;         // requests that were never scheduled
  int64_t num_waiting_tokens = 0;  // of prompts, for each completion that was never scheduled
  int64_t kv_blocks_used = 0;
  int64_t kv_blocks_free = 0;
  int64_t kv_blocks_cached = 0;  // of the free ones, those that the prefix cache could find
  // Since the start.
  int64_t num_preemptions = 0;
  int64_t prefix_cache_hit_tokens = 0;   // of prompts, found in the prefix cache
  int64_t prefix_cache_miss_tokens = 0;  // of prompts, computed
};

using RequestId = uint64_t;

// Thread-safe. Destruction cancels what is in flight and joins the threads.
class EngineLoop {
 public:
  static std::unique_ptr<EngineLoop> Start(std::unique_ptr<Model> model,
                                           std::shared_ptr<const Tokenizer> tokenizer,
                                           const EngineLoopOptions& options,
                                           std::shared_ptr<EngineObserver> observer = nullptr);
  ~EngineLoop();

  // INVALID_ARGUMENT (naming the field), RESOURCE_EXHAUSTED when the queue is full, UNAVAILABLE
  // when draining. On success the sink will see OnFinish for each completion, come what may.
  absl::StatusOr<RequestId> Submit(GenerationRequest request, std::shared_ptr<GenerationSink> sink);

  // RESOURCE_EXHAUSTED when the queue has no room for so many completions and tokens of prompts:
  // what Submit would say now. UNAVAILABLE when draining.
  absl::Status CheckRoom(int32_t num_completions, int64_t num_tokens) const;

  // When somebody for whom the queue has no room should try again: from how fast it has emptied
  // lately, and different for each who asks, so that they do not all come at once.
  absl::Duration NextRetryDelay();

  // Ends the request's completions with kCancelled and frees their blocks at the next step's
  // boundary. Unknown and finished ids are ignored.
  void Cancel(RequestId id);

  // Refuses new requests and returns when those in flight have finished and their sinks have heard
  // of it, or after the deadline when those left have been cancelled.
  void Drain(absl::Time deadline);

  // Cancels what is in flight, tells the sinks, ends the threads and frees the model. Afterwards
  // Submit is UNAVAILABLE, and stats and memory usage are 0. From any thread but the loop's own.
  void Stop();

  // As of the last step's beginning or end; does not wait for the one in progress.
  EngineLoopStats stats() const;
  MemoryUsage memory_usage() const;

 private:
  class Impl;
  explicit EngineLoop(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_ENGINE_LOOP_H_
