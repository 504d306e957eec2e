// Score: log-probabilities of a given text.
#ifndef ULTRASKETCH_SERVER_SCORE_CALL_H_
#define ULTRASKETCH_SERVER_SCORE_CALL_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include <grpcpp/support/server_callback.h>

#include "engine/serving/engine_loop/score.h"
#include "server/engine_call.h"
#include "server/model_call.h"
#include "ultrasketch/v1/generation.pb.h"

namespace ultrasketch {

// Lives until gRPC is done with it and the engine has released it, whichever comes later.
class ScoreCall final : public grpc::ServerUnaryReactor, public EngineCall {
 public:
  // Context, request and response are gRPC's and live until OnDone.
  static std::shared_ptr<ScoreCall> Create(const CallEnvironment& environment,
                                           grpc::CallbackServerContext* context,
                                           const v1::ScoreRequest* request,
                                           v1::ScoreResponse* response);

  void OnCancel() override { model_call().OnClientGone(); }
  void OnDone() override { LetGo(); }

 private:
  ScoreCall(const CallEnvironment& environment, grpc::CallbackServerContext* context,
            const v1::ScoreRequest* request, v1::ScoreResponse* response)
      : EngineCall(environment, "Score", context), request_(request), response_(response) {}

  const std::string& model_name() const override { return request_->model(); }
  Demand demand() const override;
  absl::Status Submit(const HostedModel& model) override;
  void Refuse(const absl::Status& status) override { Finish(model_call().Reject(status)); }

  void OnScore(absl::StatusOr<ScoreResult> result);

  const v1::ScoreRequest* const request_;
  v1::ScoreResponse* const response_;
  int64_t max_response_bytes_ = 0;  // set before the request is submitted
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_SCORE_CALL_H_
