#include "server/model_call.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "engine/base/status.h"
#include "engine/serving/engine_loop/validate_request.h"
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
             : reason == kServerFullReason      ? RejectionReason::kServerFull
             : reason == kClientFullReason      ? RejectionReason::kClientFull
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
  // Not as a time point of C++: its nanoseconds end in the year 2262.
  const gpr_timespec deadline = gpr_convert_clock_type(context.raw_deadline(), GPR_CLOCK_REALTIME);
  if (gpr_time_cmp(deadline, gpr_inf_future(deadline.clock_type)) == 0) {
    return absl::InfiniteFuture();
  }
  return absl::FromUnixSeconds(deadline.tv_sec) + absl::Nanoseconds(deadline.tv_nsec);
}

absl::Status DeadlinePassed() { return absl::DeadlineExceededError("the deadline has passed"); }

}  // namespace

ModelCall::ModelCall(const CallEnvironment& environment, std::string_view method,
                     grpc::CallbackServerContext* context,
                     std::function<void(const absl::Status&)> on_slow_reader)
    : environment_(environment),
      context_(context),
      arrival_(absl::Now()),
      deadline_(DeadlineOf(*context)),
      on_slow_reader_(std::move(on_slow_reader)),
      record_(environment_.request_log, method, *context) {
  open_calls().Add(this, /*is_waited_for=*/true);
  if (limits().after_accept != nullptr) limits().after_accept();
}

absl::Status ModelCall::Open(const std::string& name) {
  std::string asking = client();
  US_RETURN_IF_ERROR(open_calls().Admit(asking));
  admitted_client_ = std::move(asking);
  US_ASSIGN_OR_RETURN(auto model, environment_.host.FindReady(name));
  absl::MutexLock lock(&mutex_);
  model_ = std::move(model);
  return absl::OkStatus();
}

void ModelCall::GiveUpPlace() {
  if (!admitted_client_.has_value()) return;
  open_calls().Release(*admitted_client_, is_answered_);
  admitted_client_.reset();
}

absl::Status ModelCall::CheckClientWaits() {
  absl::MutexLock lock(&mutex_);
  // gRPC may not have told yet.
  if (client_status_.ok() && absl::Now() >= deadline_) return DeadlinePassed();
  return client_status_;
}

absl::Status ModelCall::CheckRoom(int64_t num_completions, int64_t num_prompt_tokens) {
  // What is out of range is for others to refuse.
  if (num_completions < 1 || num_completions > kMaxCompletions) return absl::OkStatus();
  const absl::Status status = model_->engine_loop->CheckRoom(
      static_cast<int32_t>(num_completions),
      num_completions * std::min<int64_t>(num_prompt_tokens, model_->max_context_tokens));
  return absl::IsResourceExhausted(status) ? QueueFull(status) : status;
}

absl::Status ModelCall::QueueFull(absl::Status status) const {
  return TryAgainLater(std::move(status), kQueueFullReason, model_->engine_loop->NextRetryDelay());
}

absl::Status ModelCall::OnSubmitted(const absl::StatusOr<RequestId>& id) {
  if (absl::IsResourceExhausted(id.status())) return QueueFull(id.status());
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
    client_status_ = absl::Now() >= deadline_ ? DeadlinePassed()
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

absl::Status ModelCall::End(absl::Status status) {
  status = ForClient(std::move(status));
  if (admitted_client_.has_value()) {
    is_answered_ = true;
    open_calls().Answer(*admitted_client_);
  }
  BeginUnread();
  requests().OnAnswer(status.code());
  if (model_ != nullptr) model_->metrics->OnRequestDuration(absl::Now() - arrival_);
  record_.Finish(status, model_ != nullptr ? model_->name : "", finished_);
  return status;
}

grpc::Status ModelCall::Close(absl::Status status) {
  status = End(std::move(status));
  BeginUnread();
  return ToGrpcStatus(status, *context_);
}

absl::Status ModelCall::EndRejected(absl::Status status) {
  requests().OnRejected(RejectionReasonOf(status));
  return End(std::move(status));
}

grpc::Status ModelCall::Reject(absl::Status status) {
  return ToGrpcStatus(EndRejected(std::move(status)), *context_);
}

void ModelCall::CheckReader(absl::Time now) {
  if (!unread_.IsLongerThan(limits().max_unread_time, now)) return;
  if (is_slow_ || on_slow_reader_ == nullptr) {
    context_->TryCancel();
    EndUnread();
    return;
  }
  is_slow_ = true;
  BeginUnread();  // as long again to take what it was sent, and then the status
  on_slow_reader_(WithReason(
      absl::ResourceExhaustedError(absl::StrCat("the client has not read its stream for ",
                                                absl::FormatDuration(limits().max_unread_time))),
      kSlowReaderReason));
}

void ModelCall::OnDone() {
  open_calls().Remove(this);
  GiveUpPlace();
}

absl::Status ModelCall::ForClient(absl::Status status) {
  if (absl::IsCancelled(status)) {
    absl::MutexLock lock(&mutex_);
    status = !client_status_.ok() ? client_status_
                                  : absl::UnavailableError("the model is shutting down");
  }
  if (absl::IsUnavailable(status) && ReasonOf(status).empty()) {
    return WithReason(std::move(status), "DRAINING");
  }
  return status;
}

RequestMetrics& ModelCall::requests() const {
  return model_ != nullptr ? model_->metrics->requests() : environment_.metrics.unattributed();
}

}  // namespace ultrasketch
