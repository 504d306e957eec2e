#include "engine/serving/engine_loop/blocking.h"

#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <variant>

#include "absl/base/thread_annotations.h"

#include "engine/base/mutex.h"
#include "engine/base/status.h"

namespace ultrasketch {
namespace {

using SinkEvent = std::variant<GenerationDelta, GenerationResult>;

// Hands the engine's events over to another thread.
class QueueSink final : public GenerationSink {
 public:
  void OnDelta(GenerationDelta delta) override { Push(std::move(delta)); }
  void OnFinish(GenerationResult result) override { Push(std::move(result)); }

  // Waits for the next event.
  SinkEvent Pop() {
    MutexLock lock(mutex_);
    mutex_.Await([this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return !events_.empty(); });
    SinkEvent event = std::move(events_.front());
    events_.pop_front();
    return event;
  }

 private:
  void Push(SinkEvent event) {
    MutexLock lock(mutex_);
    events_.push_back(std::move(event));
  }

  Mutex mutex_;
  std::deque<SinkEvent> events_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<std::vector<GenerationOutput>> GenerateAndWait(
    EngineLoop& loop, GenerationRequest request,
    const std::function<void(const GenerationDelta&)>& on_delta, const std::stop_token& stop) {
  const int32_t num_completions = request.num_completions;
  const auto sink = std::make_shared<QueueSink>();
  US_ASSIGN_OR_RETURN(const RequestId id, loop.Submit(std::move(request), sink));
  const std::stop_callback on_stop(stop, [&loop, id] { loop.Cancel(id); });

  std::vector<GenerationOutput> outputs(static_cast<size_t>(num_completions));
  for (int32_t num_finished = 0; num_finished < num_completions;) {
    SinkEvent event = sink->Pop();
    if (auto* delta = std::get_if<GenerationDelta>(&event)) {
      if (on_delta != nullptr) on_delta(*delta);
      GenerationOutput& output = outputs[static_cast<size_t>(delta->completion)];
      output.text += delta->text;
      output.token_ids.insert(output.token_ids.end(), delta->token_ids.begin(),
                              delta->token_ids.end());
      output.logprobs.insert(output.logprobs.end(),
                             std::make_move_iterator(delta->logprobs.begin()),
                             std::make_move_iterator(delta->logprobs.end()));
    } else {
      auto& result = std::get<GenerationResult>(event);
      outputs[static_cast<size_t>(result.completion)].result = std::move(result);
      ++num_finished;
    }
  }
  for (const GenerationOutput& output : outputs) US_RETURN_IF_ERROR(output.result.status);
  return outputs;
}

absl::StatusOr<ScoreResult> ScoreAndWait(EngineLoop& loop, ScoreRequest request) {
  // Shared with the callback, which may still be unlocking when the wait is over.
  struct Waiting {
    Mutex mutex;
    std::optional<absl::StatusOr<ScoreResult>> result ABSL_GUARDED_BY(mutex);
  };
  const auto waiting = std::make_shared<Waiting>();
  US_RETURN_IF_ERROR(
      SubmitScore(loop, std::move(request), [waiting](absl::StatusOr<ScoreResult> result) {
        MutexLock lock(waiting->mutex);
        waiting->result = std::move(result);
      }).status());
  MutexLock lock(waiting->mutex);
  waiting->mutex.Await([&waiting]() ABSL_SHARED_LOCKS_REQUIRED(waiting->mutex) {
    return waiting->result.has_value();
  });
  return *std::move(waiting->result);
}

}  // namespace ultrasketch
