// Tokenize and Detokenize: calls that are answered without an engine.
#ifndef ULTRASKETCH_SERVER_TEXT_CALL_H_
#define ULTRASKETCH_SERVER_TEXT_CALL_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include <google/protobuf/message.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include "server/model_call.h"
#include "server/open_calls.h"
#include "server/request_log.h"
#include "server/work_queue.h"

namespace ultrasketch {

// Deletes itself when gRPC is done with it.
class TextCall final : public grpc::ServerUnaryReactor, public OpenCall {
 public:
  // Fills the response. What it does can end when the flag turns true: nobody waits for it.
  using Work = std::function<absl::Status(const std::atomic<bool>& client_gone)>;

  // `context` and `response`, which `work` fills, are gRPC's; what `environment` refers to outlives
  // the call. `method` is a literal, for the log.
  TextCall(const CallEnvironment& environment, std::string_view method,
           grpc::CallbackServerContext* context, std::string model,
           const google::protobuf::Message& response, Work work)
      : queue_(environment.long_texts),
        open_calls_(*environment.open_calls),
        record_(environment.request_log, method, *context),
        context_(context),
        model_(std::move(model)),
        response_(response),
        work_(std::move(work)) {
    open_calls_.Add(this, /*is_waited_for=*/false);
  }

  // What the log says about the call. Before Begin.
  RequestRecord& record() { return record_; }

  // Does the work here, or on the queue's threads for an input of so many bytes that event threads
  // should not wait for it.
  void Begin(size_t input_bytes);

  void OnCancel() override;
  void OnDone() override;
  void CheckReader(absl::Time now) override;

 private:
  void Answer();
  void Close(const absl::Status& status);

  WorkQueue& queue_;
  OpenCalls& open_calls_;
  RequestRecord record_;
  grpc::CallbackServerContext* const context_;
  const std::string model_;  // as the client names it
  const google::protobuf::Message& response_;
  const Work work_;
  UnreadSince unread_;
  int64_t num_answer_bytes_ = 0;
  std::atomic<bool> client_gone_ = false;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_TEXT_CALL_H_
