// Generate: one completion request, answered as a whole.
#ifndef ULTRASKETCH_SERVER_GENERATE_CALL_H_
#define ULTRASKETCH_SERVER_GENERATE_CALL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include "absl/status/status.h"
#include <grpcpp/support/server_callback.h>

#include "server/model_call.h"
#include "server/response_translation.h"
#include "ultrasketch/v1/generation.pb.h"

namespace ultrasketch {

// A Generate that came, and is answered, in another protocol's messages.
class GenerateExchange {
 public:
  virtual ~GenerateExchange() = default;

  v1::GenerateRequest request;
  v1::GenerateResponse response;
  // Why there is no such request.
  absl::Status invalid;

  // Turns the outcome into the other protocol's: the response when it is OK, which another error
  // may come of, else the error. Once, before the call ends; on any thread.
  virtual absl::Status Answer(const absl::Status& outcome) = 0;
};

// Lives until gRPC is done with it and the engine has released it, whichever comes later.
class GenerateCall final : public grpc::ServerUnaryReactor,
                           public GenerationSink,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  // Context, request and response are gRPC's and live until OnDone.
  static std::shared_ptr<GenerateCall> Create(const CallEnvironment& environment,
                                              grpc::CallbackServerContext* context,
                                              const v1::GenerateRequest* request,
                                              v1::GenerateResponse* response);
  // `method` as ModelCall takes it.
  static std::shared_ptr<GenerateCall> Create(const CallEnvironment& environment,
                                              std::string_view method,
                                              grpc::CallbackServerContext* context,
                                              std::unique_ptr<GenerateExchange> exchange);

  // Finds the model, and whether there is room. Before Begin.
  absl::Status Open();
  // Validates, tokenizes and submits. Takes as long as tokenizing does.
  void Begin();
  ModelCall& model_call() { return call_; }

  // Ends the call before it has begun.
  void Reject(const absl::Status& status) { Finish(call_.Reject(Answered(status))); }

  void OnDelta(GenerationDelta delta) override;
  void OnFinish(GenerationResult result) override;

  void OnCancel() override { call_.OnClientGone(); }
  void OnDone() override {
    call_.OnDone();
    self_.reset();
  }

 private:
  GenerateCall(const CallEnvironment& environment, std::string_view method,
               grpc::CallbackServerContext* context, const v1::GenerateRequest* request,
               v1::GenerateResponse* response)
      : call_(environment, method, context), request_(request), response_(response) {}

  absl::Status Submit();
  // The outcome, in the protocol of the call.
  absl::Status Answered(const absl::Status& outcome) {
    return exchange_ == nullptr ? outcome : exchange_->Answer(outcome);
  }
  v1::Completion& CompletionAt(int32_t index);
  void AddResult(const GenerationResult& result);

  ModelCall call_;
  std::shared_ptr<GenerateCall> self_;          // until OnDone
  std::unique_ptr<GenerateExchange> exchange_;  // null: request and response are the call's own
  const v1::GenerateRequest* const request_;
  v1::GenerateResponse* const response_;

  // Begin's until the request is submitted, then the delivery thread's.
  std::optional<GenerationTranslator> translator_;
  int64_t max_response_bytes_ = 0;
  int64_t num_response_bytes_ = 0;  // at least, so far
  int32_t num_unfinished_ = 0;
  absl::Duration longest_;  // of the completions so far
  absl::Status status_;     // why there will be no answer, once that is known
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_GENERATE_CALL_H_
