// Generate: one completion request, answered as a whole.
#ifndef ULTRASKETCH_SERVER_GENERATE_CALL_H_
#define ULTRASKETCH_SERVER_GENERATE_CALL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include <grpcpp/support/server_callback.h>

#include "server/engine_call.h"
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
                           public EngineCall {
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

  void OnDelta(GenerationDelta delta) override;
  void OnFinish(GenerationResult result) override;

  void OnCancel() override { model_call().OnClientGone(); }
  void OnDone() override { LetGo(); }

 private:
  GenerateCall(const CallEnvironment& environment, std::string_view method,
               grpc::CallbackServerContext* context, const v1::GenerateRequest* request,
               v1::GenerateResponse* response)
      : EngineCall(environment, method, context), request_(request), response_(response) {}

  const std::string& model_name() const override { return request_->model(); }
  Demand demand() const override;
  absl::Status CheckForm() const override {
    return exchange_ == nullptr ? absl::OkStatus() : exchange_->invalid;
  }
  absl::Status Submit(const HostedModel& model) override;
  void Refuse(const absl::Status& status) override {
    Finish(model_call().Reject(Answered(status)));
  }

  // The outcome, in the protocol of the call.
  absl::Status Answered(const absl::Status& outcome) {
    return exchange_ == nullptr ? outcome : exchange_->Answer(outcome);
  }
  v1::Completion& CompletionAt(int32_t index);
  void AddResult(const GenerationResult& result);

  std::unique_ptr<GenerateExchange> exchange_;  // null: request and response are the call's own
  const v1::GenerateRequest* const request_;
  v1::GenerateResponse* const response_;

  // Submit's until the engine has the request, then the delivery thread's.
  std::optional<GenerationTranslator> translator_;
  int64_t max_response_bytes_ = 0;
  int64_t num_response_bytes_ = 0;  // at least, so far
  int32_t num_unfinished_ = 0;
  absl::Duration longest_;  // of the completions so far
  absl::Status status_;     // why there will be no answer, once that is known
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_GENERATE_CALL_H_
