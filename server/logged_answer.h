// The answer to a call that runs on no engine, with its line in the log.
#ifndef ULTRASKETCH_SERVER_LOGGED_ANSWER_H_
#define ULTRASKETCH_SERVER_LOGGED_ANSWER_H_

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include "server/request_log.h"
#include "server/status.h"

namespace ultrasketch {

// Kept by who is to answer. Not thread-safe.
class LoggedAnswer {
 public:
  // `method` is a literal: "GetModel". `log` outlives the call; `model` is the name that the client
  // gives, or "".
  LoggedAnswer(const RequestLog& log, std::string_view method, grpc::CallbackServerContext* context,
               std::string model)
      : record_(log, method, *context),
        reactor_(context->DefaultReactor()),
        model_(std::move(model)) {}

  grpc::ServerUnaryReactor* reactor() const { return reactor_; }

  // Once.
  grpc::ServerUnaryReactor* Finish(const absl::Status& status) {
    record_.Finish(status, model_);
    grpc::ServerUnaryReactor* const reactor = reactor_;
    reactor->Finish(ToGrpcStatus(status));
    return reactor;
  }

 private:
  RequestRecord record_;
  grpc::ServerUnaryReactor* const reactor_;
  const std::string model_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_LOGGED_ANSWER_H_
