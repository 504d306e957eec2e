// Score: log-probabilities of a given text.
#ifndef ULTRASKETCH_SERVER_SCORE_CALL_H_
#define ULTRASKETCH_SERVER_SCORE_CALL_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include <grpcpp/support/server_callback.h>

#include "engine/serving/engine_loop/score.h"
#include "server/model_call.h"
#include "ultrasketch/v1/generation.pb.h"

namespace ultrasketch {

// Lives until gRPC is done with it and the engine has released it, whichever comes later.
class ScoreCall final : public grpc::ServerUnaryReactor,
                        public std::enable_shared_from_this<ScoreCall> {
 public:
  // Context, request and response are gRPC's and live until OnDone.
  static std::shared_ptr<ScoreCall> Create(const CallEnvironment& environment,
                                           grpc::CallbackServerContext* context,
                                           const v1::ScoreRequest* request,
                                           v1::ScoreResponse* response);

  // Finds the model, and whether there is room. Before Begin.
  absl::Status Open();
  // Validates, tokenizes and submits. Takes as long as tokenizing does.
  void Begin();
  ModelCall& model_call() { return call_; }

  // Ends the call before it has begun.
  void Reject(const absl::Status& status) { Finish(call_.Reject(status)); }

  void OnCancel() override { call_.OnClientGone(); }
  void OnDone() override {
    call_.OnDone();
    self_.reset();
  }

 private:
  ScoreCall(const CallEnvironment& environment, grpc::CallbackServerContext* context,
            const v1::ScoreRequest* request, v1::ScoreResponse* response)
      : call_(environment, "Score", context), request_(request), response_(response) {}

  absl::Status Submit();
  void OnScore(absl::StatusOr<ScoreResult> result);

  ModelCall call_;
  std::shared_ptr<ScoreCall> self_;  // until OnDone
  const v1::ScoreRequest* const request_;
  v1::ScoreResponse* const response_;
  int64_t max_response_bytes_ = 0;  // set before the request is submitted
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_SCORE_CALL_H_
