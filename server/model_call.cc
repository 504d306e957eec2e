#include "server/model_call.h"

#include <chrono>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "engine/base/status.h"
#include "server/status.h"

namespace ultrasketch {
namespace {

RejectionReason RejectionReasonOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return RejectionReason::kInvalidArgument;
    case absl::StatusCode::kNotFound:
      return RejectionReason::kUnknownModel;
    case absl::StatusCode::kResourceExhausted: {
      const std::string reason = ReasonOf(status);
      return reason == kQueueFullReason         ? RejectionReason::kQueueFull
             : reason == kQueuedBytesFullReason ? RejectionReason::kQueuedBytesFull
                                                : RejectionReason::kTooLarge;
    }
    case absl::StatusCode::kOutOfRange:
      return RejectionReason::kResponseTooLarge;
    case absl::StatusCode::kUnavailable:
      return RejectionReason::kDraining;
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kDeadlineExceeded:
      return RejectionReason::kClientGone;
    default:
      return RejectionReason::kOther;
  }
}

absl::Time DeadlineOf(const grpc::CallbackServerContext& context) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return absl::FromChrono(deadline);
}

}  // namespace

ModelCall::ModelCall(const CallEnvironment& environment, std::string_view method,
                     grpc::CallbackServerContext* context)
    : environment_(environment),
      context_(context),
      arrival_(absl::Now()),
      deadline_(DeadlineOf(*context)),
      record_(environment_.request_log, method, *context) {
  environment_.open_calls->Add();
}

absl::Status ModelCall::Open(const std::string& name) {
  US_ASSIGN_OR_RETURN(auto model, environment_.host.FindReady(name));
  absl::MutexLock lock(&mutex_);
  model_ = std::move(model);
  return absl::OkStatus();
}

absl::Status ModelCall::CheckClientWaits() {
  absl::MutexLock lock(&mutex_);
  return client_status_;
}

absl::Status ModelCall::OnSubmitted(const absl::StatusOr<RequestId>& id) {
  if (absl::IsResourceExhausted(id.status())) return TryAgainLater(id.status(), kQueueFullReason);
  US_RETURN_IF_ERROR(id.status());
  absl::MutexLock lock(&mutex_);
  request_id_ = *id;
  if (is_cancelled_ || !client_status_.ok()) model_->engine_loop->Cancel(*id);
  return absl::OkStatus();
}

void ModelCall::OnClientGone() {
  {
    absl::MutexLock lock(&mutex_);
    if (!client_status_.ok()) return;
    client_status_ = absl::Now() >= deadline_
                         ? absl::DeadlineExceededError("the deadline has passed")
                         : absl::CancelledError("the client has cancelled");
    client_gone_ = true;
    if (request_id_.has_value()) model_->engine_loop->Cancel(*request_id_);
  }
  if (const auto work = environment_.long_texts.Take(this)) work();
}

void ModelCall::CancelRequest() {
  absl::MutexLock lock(&mutex_);
  is_cancelled_ = true;
  if (request_id_.has_value()) model_->engine_loop->Cancel(*request_id_);
}

void ModelCall::CountDelta(const GenerationDelta& delta, int64_t num_prompt_tokens) {
  if (!prompt_counted_) {
    prompt_counted_ = true;
    model_->metrics->OnPromptTokens(num_prompt_tokens);
    finished_.num_prompt_tokens = num_prompt_tokens;
    finished_.time_to_first_token = absl::Now() - arrival_;
  }
  finished_.num_completion_tokens += static_cast<int64_t>(delta.token_ids.size());
  model_->metrics->OnGeneratedTokens(static_cast<int64_t>(delta.token_ids.size()));
}

grpc::Status ModelCall::Close(absl::Status status) {
  status = ForClient(std::move(status));
  requests().OnAnswer(status.code());
  if (model_ != nullptr) model_->metrics->OnRequestDuration(absl::Now() - arrival_);
  record_.Finish(status, model_ != nullptr ? model_->name : "", finished_);
  return ToGrpcStatus(status, *context_);
}

grpc::Status ModelCall::Reject(absl::Status status) {
  requests().OnRejected(RejectionReasonOf(status));
  return Close(std::move(status));
}

absl::Status ModelCall::ForClient(absl::Status status) {
  if (absl::IsCancelled(status)) {
    absl::MutexLock lock(&mutex_);
    status = !client_status_.ok() ? client_status_
                                  : absl::UnavailableError("the model is shutting down");
  }
  if (absl::IsUnavailable(status)) return WithReason(std::move(status), "DRAINING");
  return status;
}

RequestMetrics& ModelCall::requests() const {
  return model_ != nullptr ? model_->metrics->requests() : environment_.metrics.unattributed();
}

}  // namespace ultrasketch
