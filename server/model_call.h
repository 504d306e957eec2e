// What every call that runs on a model's engine has in common: the model, the deadline, who may
// cancel when, and the books.
#ifndef ULTRASKETCH_SERVER_MODEL_CALL_H_
#define ULTRASKETCH_SERVER_MODEL_CALL_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include <grpcpp/support/status.h>

#include "engine/serving/engine_loop/engine_loop.h"
#include "server/metrics.h"
#include "server/model_host.h"
#include "server/open_calls.h"

namespace ultrasketch {

// What calls need of the server.
struct CallEnvironment {
  const ModelHost& host;  // outlives the calls, as does `metrics`
  Metrics& metrics;
  std::shared_ptr<OpenCalls> open_calls;
};

// One call. Thread-safe, except where noted.
class ModelCall {
 public:
  ModelCall(const CallEnvironment& environment, absl::Time deadline);

  absl::Time deadline() const { return deadline_; }

  // Looks the model up and checks that the client still waits. Before anything below; not
  // concurrent with itself. `name` empty: the only model.
  absl::Status Open(const std::string& name);
  // The model; not null after Open has succeeded. Stays the same until Close.
  const std::shared_ptr<const HostedModel>& model() const { return model_; }

  // The engine has accepted the request: from now on it can be cancelled, and is, if the client has
  // gone in between.
  void OnSubmitted(RequestId id);

  // The client has cancelled, vanished or run into its deadline: cancels the request at once.
  void OnClientGone();

  // Counts the delta's tokens, and with the first delta the prompt's. On the engine's thread.
  void CountDelta(const GenerationDelta& delta, int64_t num_prompt_tokens);

  // Ends the books with the call's outcome and gives what to answer. Once. A cancellation that the
  // client did not ask for is the server's: UNAVAILABLE.
  grpc::Status Close(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);

  // Close for a call that never reached the engine.
  grpc::Status Reject(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);

  // gRPC is done with the call.
  void OnDone() { environment_.open_calls->Remove(); }

 private:
  // What the client is told of an error inside the server.
  absl::Status ForClient(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);
  // The counts of the model, or of no model.
  RequestMetrics& requests() const;

  const CallEnvironment environment_;
  const absl::Time arrival_;
  const absl::Time deadline_;
  std::shared_ptr<const HostedModel> model_;
  bool prompt_counted_ = false;  // the engine's thread alone

  absl::Mutex mutex_;
  std::optional<RequestId> request_id_ ABSL_GUARDED_BY(mutex_);
  absl::Status client_status_ ABSL_GUARDED_BY(mutex_);  // why the client no longer waits; else OK
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_MODEL_CALL_H_
