// What every call that runs on a model's engine has in common: the model, the deadline, who may
// cancel when, and the books.
#ifndef ULTRASKETCH_SERVER_MODEL_CALL_H_
#define ULTRASKETCH_SERVER_MODEL_CALL_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include "engine/serving/engine_loop/engine_loop.h"
#include "server/metrics.h"
#include "server/model_host.h"
#include "server/open_calls.h"
#include "server/refusal_pacer.h"
#include "server/request_log.h"
#include "server/work_queue.h"

namespace ultrasketch {

// What calls need of the server.
struct CallEnvironment {
  const ModelHost& host;  // outlives the calls, as do `metrics` and `long_texts`
  Metrics& metrics;
  WorkQueue& long_texts;          // where work waits that has the ModelCall for its owner
  RefusalPacer& refusals;         // outlives the calls
  const RequestLog& request_log;  // outlives the calls, too
  std::shared_ptr<OpenCalls> open_calls;
};

// One call. Thread-safe, except where noted.
class ModelCall final : public OpenCall {
 public:
  // `method` is a literal, for the log: "Generate". `context` is gRPC's and lives until OnDone.
  // `on_slow_reader`, unless null, is called once when the client has left a message unread for too
  // long, with the status to end the call with; it must not block. Without it, or when that does
  // not help either, the call is cancelled.
  ModelCall(const CallEnvironment& environment, std::string_view method,
            grpc::CallbackServerContext* context,
            std::function<void(const absl::Status&)> on_slow_reader = nullptr);

  // What the log says about the call. Before it is open to other threads.
  RequestRecord& record() { return record_; }

  // When the call came in.
  absl::Time arrival() const { return arrival_; }
  absl::Time deadline() const { return deadline_; }

  // Who asks, for fairness between clients.
  std::string client() const { return ClientOf(*context_); }

  // Turns true when the client has gone: what is done for it can end (EncodeOptions::cancelled).
  const std::atomic<bool>& client_gone() const { return client_gone_; }

  // Takes a place among the open requests and looks the model up. Once, before anything below.
  // `name` empty: the only model.
  absl::Status Open(const std::string& name) ABSL_LOCKS_EXCLUDED(mutex_);
  // The model; not null after Open has succeeded. Stays the same until Close.
  const std::shared_ptr<const HostedModel>& model() const { return model_; }

  // The call is refused and takes no place among the open requests from now on, answered or not.
  void GiveUpPlace();

  // Why the client no longer waits: CANCELLED or DEADLINE_EXCEEDED; else OK.
  absl::Status CheckClientWaits() ABSL_LOCKS_EXCLUDED(mutex_);

  // Before a prompt is tokenized: whether the model's queue has room for so many completions, and
  // tokens of a prompt. RESOURCE_EXHAUSTED with when to try again.
  absl::Status CheckRoom(int64_t num_completions, int64_t num_prompt_tokens);

  // Takes what the engine has answered to the request. An accepted one can be cancelled from now
  // on, and is, if the client has gone in between. An error says how a full queue is to be retried.
  absl::Status OnSubmitted(const absl::StatusOr<RequestId>& id);

  // The client has cancelled, vanished or run into its deadline: cancels the request at once, or
  // runs the work that still waits, which finds the client gone.
  void OnClientGone() ABSL_LOCKS_EXCLUDED(mutex_);

  // The answer is of no use any more: cancels the request, now or as soon as it is submitted. Its
  // sink hears of the end as ever.
  void CancelRequest() ABSL_LOCKS_EXCLUDED(mutex_);

  // Counts the delta's tokens, and with the first delta the prompt's. On the loop's delivery
  // thread.
  void CountDelta(const GenerationDelta& delta, int64_t num_prompt_tokens);

  // Ends the books with the call's outcome and gives what the client is told. Once. A cancellation
  // that the client did not ask for is the server's: UNAVAILABLE.
  absl::Status End(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);
  // The same, for the gRPC call to finish with.
  grpc::Status Close(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);

  // End and Close for a call that never reached the engine.
  absl::Status EndRejected(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);
  grpc::Status Reject(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);

  // From now on the client has something to read, until it has read it.
  void BeginUnread() { unread_.Begin(); }
  void EndUnread() { unread_.End(); }
  void CheckReader(absl::Time now) override;

  const CallEnvironment& environment() const { return environment_; }
  const CallLimits& limits() const { return environment_.open_calls->limits(); }
  OpenCalls& open_calls() const { return *environment_.open_calls; }

  // gRPC is done with the call.
  void OnDone();

 private:
  absl::Status QueueFull(absl::Status status) const;
  // What the client is told of an error inside the server.
  absl::Status ForClient(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);
  // The counts of the model, or of no model.
  RequestMetrics& requests() const;

  const CallEnvironment environment_;
  grpc::CallbackServerContext* const context_;
  const absl::Time arrival_;
  const absl::Time deadline_;
  const std::function<void(const absl::Status&)> on_slow_reader_;
  std::optional<std::string> admitted_client_;
  bool is_answered_ = false;
  UnreadSince unread_;
  bool is_slow_ = false;  // CheckReader's alone
  std::shared_ptr<const HostedModel> model_;
  RequestRecord record_;
  FinishedRequest finished_;     // the delivery thread alone, until Close
  bool prompt_counted_ = false;  // the delivery thread alone
  std::atomic<bool> client_gone_ = false;

  absl::Mutex mutex_;
  std::optional<RequestId> request_id_ ABSL_GUARDED_BY(mutex_);
  bool is_cancelled_ ABSL_GUARDED_BY(mutex_) = false;   // by CancelRequest
  absl::Status client_status_ ABSL_GUARDED_BY(mutex_);  // why the client no longer waits; else OK
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_MODEL_CALL_H_
