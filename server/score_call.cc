#include "server/score_call.h"

#include <cmath>
#include <utility>

#include "engine/base/status.h"
#include "server/request_translation.h"
#include "server/response_limit.h"
#include "server/response_translation.h"

namespace ultrasketch {

std::shared_ptr<ScoreCall> ScoreCall::Create(const CallEnvironment& environment,
                                             grpc::CallbackServerContext* context,
                                             const v1::ScoreRequest* request,
                                             v1::ScoreResponse* response) {
  std::shared_ptr<ScoreCall> call(new ScoreCall(environment, context, request, response));
  call->KeepUntilDone();
  return call;
}

EngineCall::Demand ScoreCall::demand() const { return {1, EstimateTokens(*request_)}; }

absl::Status ScoreCall::Submit(const HostedModel& model) {
  US_ASSIGN_OR_RETURN(max_response_bytes_, MaxResponseBytes(*request_));
  US_ASSIGN_OR_RETURN(ScoreRequest request,
                      TranslateScoreRequest(*request_, model, model_call().deadline(),
                                            &model_call().client_gone()));
  Sign(request);
  US_RETURN_IF_ERROR(CheckResponseBytes(MinResponseBytes(request), max_response_bytes_));
  response_->set_model(model.name);
  response_->mutable_token_ids()->Add(request.token_ids.begin(), request.token_ids.end());
  return model_call().OnSubmitted(
      SubmitScore(*model.engine_loop, std::move(request),
                  [call = Share<ScoreCall>(this)](absl::StatusOr<ScoreResult> result) {
                    call->OnScore(std::move(result));
                  }));
}

void ScoreCall::OnScore(absl::StatusOr<ScoreResult> result) {
  if (!result.ok()) {
    Finish(model_call().Close(result.status()));
    return;
  }
  const HostedModel& model = *model_call().model();
  model.metrics->OnPromptTokens(response_->token_ids_size());
  AppendLogprobsOfText(response_->token_ids(0), result->logprobs, *model.tokenizer,
                       *response_->mutable_logprobs());
  response_->set_sum_logprob(result->sum_logprob);
  response_->set_perplexity(
      std::exp(-result->sum_logprob / static_cast<double>(result->logprobs.size())));
  Finish(model_call().Close(
      CheckResponseBytes(static_cast<int64_t>(response_->ByteSizeLong()), max_response_bytes_)));
}

}  // namespace ultrasketch
