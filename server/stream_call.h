// GenerateStream: deltas as they arrive, then one final message for each completion.
#ifndef ULTRASKETCH_SERVER_STREAM_CALL_H_
#define ULTRASKETCH_SERVER_STREAM_CALL_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include <grpcpp/support/server_callback.h>

#include "server/engine_call.h"
#include "server/model_call.h"
#include "server/response_translation.h"
#include "ultrasketch/v1/generation.pb.h"

namespace ultrasketch {

// One message is with gRPC at a time. What the engine produces meanwhile is merged, to few large
// deltas and one final message for each completion: a client that reads slowly, or not at all, gets
// larger deltas, though none larger than it takes, and holds up nobody. One that leaves more unread
// than CallLimits allow, or for longer, gets SLOW_READER behind what it was sent so far, and its
// request is cancelled.
//
// Finish comes only after the engine's last event, or when there never was one: until then gRPC
// keeps the call. Lives until gRPC is done with it and the engine has released it.
class StreamCall final : public grpc::ServerWriteReactor<v1::GenerateStreamResponse>,
                         public GenerationSink,
                         public EngineCall {
 public:
  // Context and request are gRPC's and live until OnDone.
  static std::shared_ptr<StreamCall> Create(const CallEnvironment& environment,
                                            grpc::CallbackServerContext* context,
                                            const v1::GenerateRequest* request);

  void OnDelta(GenerationDelta delta) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnFinish(GenerationResult result) override ABSL_LOCKS_EXCLUDED(mutex_);

  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnCancel() override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnDone() override ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  StreamCall(const CallEnvironment& environment, grpc::CallbackServerContext* context,
             const v1::GenerateRequest* request)
      : EngineCall(environment, "GenerateStream", context,
                   [this](const absl::Status& status) { GiveUpReader(status); }),
        request_(request) {}

  const std::string& model_name() const override { return request_->model(); }
  Demand demand() const override;
  absl::Status Submit(const HostedModel& model) override ABSL_LOCKS_EXCLUDED(mutex_);
  void Refuse(const absl::Status& status) override ABSL_LOCKS_EXCLUDED(mutex_);

  struct Pending {
    v1::GenerateStreamResponse message;
    int64_t num_bytes = 0;  // of a delta: at least, and about
  };

  // The client reads too slowly: the call ends with `status` as soon as it can.
  void GiveUpReader(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  void EndSlowReader(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // `num_bytes` more, or less, wait to be read.
  void AddUnread(int64_t num_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Before Advance, when `newest` was added to: whether too much waits before it.
  void CheckUnread(const Pending& newest) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Where more of the completion's text goes.
  Pending& PendingDelta(int32_t completion) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Pending& AddPending() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The client reads no more.
  void GiveUpWriting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Starts the next write, or ends the call, when it is time to.
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const v1::GenerateRequest* const request_;

  // Set before the request is submitted, then only read.
  int64_t num_prompt_tokens_ = 0;
  int64_t max_message_bytes_ = 0;

  absl::Mutex mutex_;
  std::optional<GenerationTranslator> translator_ ABSL_GUARDED_BY(mutex_);
  std::deque<Pending> pending_ ABSL_GUARDED_BY(mutex_);
  v1::GenerateStreamResponse current_;  // with gRPC while is_writing_
  int64_t current_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t num_unread_bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // of pending_ and current_
  bool is_writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_slow_ ABSL_GUARDED_BY(mutex_) = false;         // what is being written is not waited for
  bool has_model_name_ ABSL_GUARDED_BY(mutex_) = false;  // a message carries it already
  bool client_reads_ ABSL_GUARDED_BY(mutex_) = true;
  bool is_finished_ ABSL_GUARDED_BY(mutex_) = false;
  int32_t num_unfinished_ ABSL_GUARDED_BY(mutex_) = 1;  // completions; 1 until they are counted
  absl::Status status_ ABSL_GUARDED_BY(mutex_);         // the first that went wrong
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_STREAM_CALL_H_
