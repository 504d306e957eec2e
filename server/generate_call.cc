#include "server/generate_call.h"

#include <utility>

#include "engine/base/status.h"
#include "server/request_translation.h"
#include "server/response_limit.h"

namespace ultrasketch {

std::shared_ptr<GenerateCall> GenerateCall::Create(const CallEnvironment& environment,
                                                   grpc::CallbackServerContext* context,
                                                   const v1::GenerateRequest* request,
                                                   v1::GenerateResponse* response) {
  std::shared_ptr<GenerateCall> call(
      new GenerateCall(environment, "Generate", context, request, response));
  call->KeepUntilDone();
  return call;
}

std::shared_ptr<GenerateCall> GenerateCall::Create(const CallEnvironment& environment,
                                                   std::string_view method,
                                                   grpc::CallbackServerContext* context,
                                                   std::unique_ptr<GenerateExchange> exchange) {
  std::shared_ptr<GenerateCall> call(
      new GenerateCall(environment, method, context, &exchange->request, &exchange->response));
  call->exchange_ = std::move(exchange);
  call->KeepUntilDone();
  return call;
}

EngineCall::Demand GenerateCall::demand() const {
  return {CompletionsOf(*request_), EstimateTokens(*request_)};
}

absl::Status GenerateCall::Submit(const HostedModel& model) {
  US_ASSIGN_OR_RETURN(max_response_bytes_, MaxResponseBytes(*request_));
  US_ASSIGN_OR_RETURN(GenerationRequest request,
                      TranslateGenerateRequest(*request_, model, model_call().deadline(),
                                               &model_call().client_gone()));
  Sign(request);
  US_RETURN_IF_ERROR(CheckResponseBytes(MinResponseBytes(request), max_response_bytes_));
  translator_.emplace(request, model.tokenizer);
  num_unfinished_ = request.num_completions;
  response_->set_model(model.name);
  response_->set_seed(request.sampling.seed);
  return model_call().OnSubmitted(
      model.engine_loop->Submit(std::move(request), Share<GenerationSink>(this)));
}

void GenerateCall::OnDelta(GenerationDelta delta) {
  model_call().CountDelta(delta, translator_->num_prompt_tokens());
  if (!status_.ok()) return;
  num_response_bytes_ += translator_->AppendDelta(delta, CompletionAt(delta.completion));
  status_ = CheckResponseBytes(num_response_bytes_, max_response_bytes_);
  if (status_.ok()) return;
  response_->Clear();
  model_call().CancelRequest();
}

void GenerateCall::OnFinish(GenerationResult result) {
  if (status_.ok()) AddResult(result);
  if (status_.ok()) status_ = result.status;
  if (--num_unfinished_ > 0) return;
  if (status_.ok()) {
    status_ =
        CheckResponseBytes(static_cast<int64_t>(response_->ByteSizeLong()), max_response_bytes_);
  }
  Finish(model_call().Close(Answered(status_)));
}

v1::Completion& GenerateCall::CompletionAt(int32_t index) {
  while (response_->completions_size() <= index) {
    v1::Completion& completion = *response_->add_completions();
    completion.set_index(response_->completions_size() - 1);
    completion.set_text("");
  }
  return *response_->mutable_completions(index);
}

void GenerateCall::AddResult(const GenerationResult& result) {
  v1::Completion& completion = CompletionAt(result.completion);
  completion.set_finish_reason(ToMessage(result.reason));
  if (!result.stop_string.empty()) completion.set_stop_string(result.stop_string);

  v1::Usage& usage = *response_->mutable_usage();
  usage.set_prompt_tokens(result.num_prompt_tokens);
  usage.set_completion_tokens(usage.completion_tokens() + result.num_completion_tokens);
  usage.set_total_tokens(usage.prompt_tokens() + usage.completion_tokens());
  if (result.completion == 0) {
    // The others find the prompt that was computed for the first.
    usage.set_cached_prompt_tokens(result.num_cached_prompt_tokens);
    translator_->AppendPromptLogprobs(result, *response_->mutable_prompt_logprobs());
  }

  const GenerationTiming& timing = result.timing;
  const absl::Duration total = timing.queue + timing.prefill + timing.decode;
  if (total >= longest_) {
    longest_ = total;
    *response_->mutable_timing() = ToMessage(timing);
  }
}

}  // namespace ultrasketch
