// Tokenize and Detokenize: calls that are answered without an engine.
#ifndef ULTRASKETCH_SERVER_TEXT_CALL_H_
#define ULTRASKETCH_SERVER_TEXT_CALL_H_

#include <atomic>
#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include "server/request_log.h"
#include "server/work_queue.h"

namespace ultrasketch {

// Deletes itself when gRPC is done with it.
class TextCall final : public grpc::ServerUnaryReactor {
 public:
  // Fills the response. What it does can end when the flag turns true: nobody waits for it.
  using Work = std::function<absl::Status(const std::atomic<bool>& client_gone)>;

  // `context` is gRPC's; `queue` and `log` outlive the call. `method` is a literal, for the log.
  TextCall(WorkQueue& queue, const RequestLog& log, std::string_view method,
           grpc::CallbackServerContext* context, std::string model, Work work)
      : queue_(queue),
        record_(log, method, *context),
        context_(context),
        model_(std::move(model)),
        work_(std::move(work)) {}

  // What the log says about the call. Before Begin.
  RequestRecord& record() { return record_; }

  // Does the work here, or on the queue's threads for an input of so many bytes that event threads
  // should not wait for it.
  void Begin(size_t input_bytes);

  void OnCancel() override;
  void OnDone() override { delete this; }

 private:
  void Answer();
  void Close(const absl::Status& status);

  WorkQueue& queue_;
  RequestRecord record_;
  grpc::CallbackServerContext* const context_;
  const std::string model_;  // as the client names it
  const Work work_;
  std::atomic<bool> client_gone_ = false;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_TEXT_CALL_H_
