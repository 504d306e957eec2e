#include "server/model_call.h"

#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "engine/base/status.h"
#include "server/log.h"
#include "server/status.h"

namespace ultrasketch {
namespace {

// When a full queue has had time to move.
constexpr absl::Duration kRetryDelay = absl::Seconds(1);

std::string_view RejectionReason(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return "invalid_argument";
    case absl::StatusCode::kNotFound:
      return "unknown_model";
    case absl::StatusCode::kResourceExhausted:
      return "queue_full";
    case absl::StatusCode::kUnavailable:
      return "draining";
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kDeadlineExceeded:
      return "client_gone";
    default:
      return "other";
  }
}

// Something that an operator should know, rather than the client's doing.
bool IsServerFault(const absl::Status& status) {
  return absl::IsInternal(status) || absl::IsDataLoss(status) || absl::IsUnknown(status);
}

}  // namespace

ModelCall::ModelCall(const CallEnvironment& environment, absl::Time deadline)
    : environment_(environment), arrival_(absl::Now()), deadline_(deadline) {
  environment_.open_calls->Add();
}

absl::Status ModelCall::Open(const std::string& name) {
  US_ASSIGN_OR_RETURN(auto model, environment_.host.FindReady(name));
  absl::MutexLock lock(&mutex_);
  model_ = std::move(model);
  return client_status_;
}

void ModelCall::OnSubmitted(RequestId id) {
  absl::MutexLock lock(&mutex_);
  request_id_ = id;
  if (!client_status_.ok()) model_->engine_loop->Cancel(id);
}

void ModelCall::OnClientGone() {
  absl::MutexLock lock(&mutex_);
  if (!client_status_.ok()) return;
  client_status_ = absl::Now() >= deadline_ ? absl::DeadlineExceededError("the deadline has passed")
                                            : absl::CancelledError("the client has cancelled");
  if (request_id_.has_value()) model_->engine_loop->Cancel(*request_id_);
}

void ModelCall::CountDelta(const GenerationDelta& delta, int64_t num_prompt_tokens) {
  if (!prompt_counted_) {
    prompt_counted_ = true;
    model_->metrics->OnPromptTokens(num_prompt_tokens);
  }
  model_->metrics->OnGeneratedTokens(static_cast<int64_t>(delta.token_ids.size()));
}

grpc::Status ModelCall::Close(absl::Status status) {
  status = ForClient(std::move(status));
  requests().OnAnswers(status.code(), 1);
  if (model_ != nullptr) model_->metrics->OnRequestDuration(absl::Now() - arrival_);
  if (IsServerFault(status)) {
    LogEvent(LogLevel::kError, "request_failed",
             {{"model", model_ != nullptr ? model_->name : ""}, {"error", status.ToString()}});
  }
  return ToGrpcStatus(status);
}

grpc::Status ModelCall::Reject(absl::Status status) {
  requests().OnRejected(RejectionReason(status));
  return Close(std::move(status));
}

absl::Status ModelCall::ForClient(absl::Status status) {
  if (absl::IsCancelled(status)) {
    absl::MutexLock lock(&mutex_);
    status = !client_status_.ok() ? client_status_
                                  : absl::UnavailableError("the model is shutting down");
  }
  if (absl::IsResourceExhausted(status)) {
    return WithReason(WithRetryDelay(std::move(status), kRetryDelay), "QUEUE_FULL");
  }
  if (absl::IsUnavailable(status)) return WithReason(std::move(status), "DRAINING");
  return status;
}

RequestMetrics& ModelCall::requests() const {
  return model_ != nullptr ? model_->metrics->requests() : environment_.metrics.unattributed();
}

}  // namespace ultrasketch
