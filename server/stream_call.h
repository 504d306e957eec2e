// GenerateStream: deltas as they arrive, then one final message for each completion.
#ifndef ULTRASKETCH_SERVER_STREAM_CALL_H_
#define ULTRASKETCH_SERVER_STREAM_CALL_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include <grpcpp/support/server_callback.h>

#include "server/model_call.h"
#include "server/response_translation.h"
#include "ultrasketch/v1/generation.pb.h"

namespace ultrasketch {

// One message is with gRPC at a time. What the engine produces meanwhile is merged, to few large
// deltas and one final message for each completion: a client that reads slowly, or not at all, gets
// larger deltas, though none larger than it takes, holds up nobody, and costs no more memory than
// the completions themselves.
//
// Finish comes only after the engine's last event, or when there never was one: until then gRPC
// keeps the call. Lives until gRPC is done with it and the engine has released it.
class StreamCall final : public grpc::ServerWriteReactor<v1::GenerateStreamResponse>,
                         public GenerationSink,
                         public std::enable_shared_from_this<StreamCall> {
 public:
  // Context and request are gRPC's and live until OnDone.
  static std::shared_ptr<StreamCall> Create(const CallEnvironment& environment,
                                            grpc::CallbackServerContext* context,
                                            const v1::GenerateRequest* request);

  // Finds the model. Before Begin.
  absl::Status Open() { return call_.Open(request_->model()); }
  // Validates, tokenizes and submits. Takes as long as tokenizing does.
  void Begin();
  ModelCall& model_call() { return call_; }

  // Ends the call before it has begun.
  void Reject(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);

  void OnDelta(GenerationDelta delta) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnFinish(GenerationResult result) override ABSL_LOCKS_EXCLUDED(mutex_);

  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnCancel() override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnDone() override {
    call_.OnDone();
    self_.reset();
  }

 private:
  StreamCall(const CallEnvironment& environment, grpc::CallbackServerContext* context,
             const v1::GenerateRequest* request)
      : call_(environment, "GenerateStream", context), request_(request) {}

  absl::Status Submit();
  struct Pending {
    v1::GenerateStreamResponse message;
    int64_t num_bytes = 0;  // of a delta: at least, and about
  };

  // Where more of the completion's text goes.
  Pending& PendingDelta(int32_t completion) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Pending& AddPending() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The client reads no more.
  void GiveUpWriting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Starts the next write, or ends the call, when it is time to.
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  ModelCall call_;
  std::shared_ptr<StreamCall> self_;  // until OnDone
  const v1::GenerateRequest* const request_;

  // Set before the request is submitted, then only read.
  int64_t num_prompt_tokens_ = 0;
  int64_t max_message_bytes_ = 0;

  absl::Mutex mutex_;
  std::optional<GenerationTranslator> translator_ ABSL_GUARDED_BY(mutex_);
  std::deque<Pending> pending_ ABSL_GUARDED_BY(mutex_);
  v1::GenerateStreamResponse current_;  // with gRPC while is_writing_
  bool is_writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_model_name_ ABSL_GUARDED_BY(mutex_) = false;  // a message carries it already
  bool client_reads_ ABSL_GUARDED_BY(mutex_) = true;
  bool is_finished_ ABSL_GUARDED_BY(mutex_) = false;
  int32_t num_unfinished_ ABSL_GUARDED_BY(mutex_) = 1;  // completions; 1 until they are counted
  absl::Status status_ ABSL_GUARDED_BY(mutex_);         // the first that went wrong
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_STREAM_CALL_H_
