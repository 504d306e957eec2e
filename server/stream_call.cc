#include "server/stream_call.h"

#include <utility>

#include "engine/base/status.h"
#include "server/request_translation.h"
#include "server/response_translation.h"

namespace ultrasketch {

std::shared_ptr<StreamCall> StreamCall::Create(const CallEnvironment& environment,
                                               grpc::CallbackServerContext* context,
                                               const v1::GenerateRequest* request) {
  std::shared_ptr<StreamCall> call(new StreamCall(environment, context, request));
  call->self_ = call;
  return call;
}

void StreamCall::Begin() {
  if (const absl::Status status = Submit(); !status.ok()) Reject(status);
}

void StreamCall::Reject(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  is_finished_ = true;
  Finish(call_.Reject(status));
}

absl::Status StreamCall::Submit() {
  US_RETURN_IF_ERROR(call_.CheckClientWaits());
  const HostedModel& model = *call_.model();
  US_ASSIGN_OR_RETURN(
      GenerationRequest request,
      TranslateGenerateRequest(*request_, model, call_.deadline(), &call_.client_gone()));
  request.arrival = call_.arrival();
  num_prompt_tokens_ = static_cast<int64_t>(request.prompt_ids.size());
  seed_ = request.sampling.seed;
  {
    absl::MutexLock lock(&mutex_);
    num_unfinished_ = request.num_completions;
  }
  return call_.OnSubmitted(model.engine_loop->Submit(std::move(request), shared_from_this()));
}

void StreamCall::OnDelta(GenerationDelta delta) {
  call_.CountDelta(delta, num_prompt_tokens_);
  absl::MutexLock lock(&mutex_);
  if (!client_reads_) return;
  AppendDelta(delta, *call_.model()->tokenizer, PendingDelta(delta.completion));
  Advance();
}

void StreamCall::OnFinish(GenerationResult result) {
  absl::MutexLock lock(&mutex_);
  if (status_.ok()) status_ = result.status;
  --num_unfinished_;
  // A completion that failed ends the call with its status and needs no message.
  if (client_reads_ && result.status.ok()) {
    *AddPending().mutable_final() = FinalOf(result, seed_, *call_.model()->tokenizer);
  }
  Advance();
}

void StreamCall::OnWriteDone(bool ok) {
  if (!ok) call_.OnClientGone();
  absl::MutexLock lock(&mutex_);
  is_writing_ = false;
  if (!ok) GiveUpWriting();
  Advance();
}

void StreamCall::OnCancel() {
  call_.OnClientGone();
  absl::MutexLock lock(&mutex_);
  GiveUpWriting();
  Advance();
}

v1::GenerateDelta& StreamCall::PendingDelta(int32_t completion) {
  for (v1::GenerateStreamResponse& message : pending_) {
    if (message.has_delta() && message.delta().index() == completion) {
      return *message.mutable_delta();
    }
  }
  v1::GenerateDelta& delta = *AddPending().mutable_delta();
  delta.set_index(completion);
  return delta;
}

v1::GenerateStreamResponse& StreamCall::AddPending() {
  v1::GenerateStreamResponse& message = pending_.emplace_back();
  if (!has_model_name_) message.set_model(call_.model()->name);
  has_model_name_ = true;
  return message;
}

void StreamCall::GiveUpWriting() {
  client_reads_ = false;
  pending_.clear();
}

void StreamCall::Advance() {
  if (is_writing_ || is_finished_) return;
  if (!pending_.empty()) {
    current_ = std::move(pending_.front());
    pending_.pop_front();
    is_writing_ = true;
    StartWrite(&current_);
  } else if (num_unfinished_ == 0) {
    is_finished_ = true;
    Finish(call_.Close(status_));
  }
}

}  // namespace ultrasketch
