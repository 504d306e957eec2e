#include "server/stream_call.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "server/request_translation.h"
#include "server/response_limit.h"
#include "server/status.h"

namespace ultrasketch {
namespace {

// A delta of this size takes no more: enough that their number does not matter.
constexpr int64_t kMergedBytes = int64_t{1} << 20;

}  // namespace

std::shared_ptr<StreamCall> StreamCall::Create(const CallEnvironment& environment,
                                               grpc::CallbackServerContext* context,
                                               const v1::GenerateRequest* request) {
  std::shared_ptr<StreamCall> call(new StreamCall(environment, context, request));
  call->KeepUntilDone();
  return call;
}

EngineCall::Demand StreamCall::demand() const {
  return {CompletionsOf(*request_), EstimateTokens(*request_)};
}

void StreamCall::Refuse(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  is_finished_ = true;
  Finish(model_call().Reject(status));
}

absl::Status StreamCall::Submit(const HostedModel& model) {
  US_ASSIGN_OR_RETURN(max_message_bytes_, MaxResponseBytes(*request_));
  US_ASSIGN_OR_RETURN(GenerationRequest request,
                      TranslateGenerateRequest(*request_, model, model_call().deadline(),
                                               &model_call().client_gone()));
  Sign(request);
  US_RETURN_IF_ERROR(CheckResponseBytes(MinStreamMessageBytes(request), max_message_bytes_));
  num_prompt_tokens_ = static_cast<int64_t>(request.prompt_ids.size());
  {
    absl::MutexLock lock(&mutex_);
    translator_.emplace(request, model.tokenizer);
    num_unfinished_ = request.num_completions;
  }
  return model_call().OnSubmitted(
      model.engine_loop->Submit(std::move(request), Share<GenerationSink>(this)));
}

void StreamCall::OnDelta(GenerationDelta delta) {
  model_call().CountDelta(delta, num_prompt_tokens_);
  absl::MutexLock lock(&mutex_);
  if (!client_reads_) return;
  Pending& pending = PendingDelta(delta.completion);
  const int64_t num_bytes = translator_->AppendDelta(delta, *pending.message.mutable_delta());
  pending.num_bytes += num_bytes;
  AddUnread(num_bytes);
  CheckUnread(pending);
  Advance();
}

void StreamCall::OnFinish(GenerationResult result) {
  absl::MutexLock lock(&mutex_);
  if (status_.ok()) status_ = result.status;
  --num_unfinished_;
  // A completion that failed ends the call with its status and needs no message.
  if (client_reads_ && result.status.ok()) {
    Pending& pending = AddPending();
    *pending.message.mutable_final() = translator_->FinalOf(result);
    pending.num_bytes = static_cast<int64_t>(pending.message.ByteSizeLong());
    AddUnread(pending.num_bytes);
    CheckUnread(pending);
  }
  Advance();
}

void StreamCall::OnWriteDone(bool ok) {
  if (!ok) model_call().OnClientGone();
  absl::MutexLock lock(&mutex_);
  is_writing_ = false;
  AddUnread(-std::exchange(current_bytes_, 0));
  if (!is_finished_) model_call().EndUnread();
  if (!ok) GiveUpWriting();
  Advance();
}

void StreamCall::OnCancel() {
  model_call().OnClientGone();
  absl::MutexLock lock(&mutex_);
  GiveUpWriting();
  Advance();
}

void StreamCall::OnDone() {
  {
    absl::MutexLock lock(&mutex_);
    AddUnread(-num_unread_bytes_);
  }
  LetGo();
}

void StreamCall::GiveUpReader(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  EndSlowReader(status);
  Advance();
}

void StreamCall::EndSlowReader(const absl::Status& status) {
  if (is_slow_ || is_finished_) return;
  is_slow_ = true;
  status_ = status;
  GiveUpWriting();
  model_call().CancelRequest();
}

void StreamCall::AddUnread(int64_t num_bytes) {
  num_unread_bytes_ += num_bytes;
  model_call().open_calls().AddUnreadBytes(num_bytes);
}

void StreamCall::CheckUnread(const Pending& newest) {
  const int64_t num_before = num_unread_bytes_ - newest.num_bytes;
  if (!is_writing_ || num_before <= model_call().limits().max_unread_bytes) return;
  EndSlowReader(
      WithReason(absl::ResourceExhaustedError(absl::StrCat(
                     "the client has not read ", num_before, " bytes of its stream, more than ",
                     model_call().limits().max_unread_bytes, " may wait")),
                 kSlowReaderReason));
}

StreamCall::Pending& StreamCall::PendingDelta(int32_t completion) {
  const auto last = std::find_if(pending_.rbegin(), pending_.rend(), [&](const Pending& pending) {
    return pending.message.has_delta() && pending.message.delta().index() == completion;
  });
  if (last != pending_.rend() && last->num_bytes < std::min(kMergedBytes, max_message_bytes_ / 2)) {
    return *last;
  }
  Pending& pending = AddPending();
  pending.message.mutable_delta()->set_index(completion);
  return pending;
}

StreamCall::Pending& StreamCall::AddPending() {
  Pending& pending = pending_.emplace_back();
  if (!has_model_name_) pending.message.set_model(model_call().model()->name);
  has_model_name_ = true;
  return pending;
}

void StreamCall::GiveUpWriting() {
  client_reads_ = false;
  pending_.clear();
  AddUnread(current_bytes_ - num_unread_bytes_);
}

void StreamCall::Advance() {
  // The status of a slow reader goes behind what it has not read.
  if ((is_writing_ && !is_slow_) || is_finished_) return;
  if (!pending_.empty()) {
    current_ = std::move(pending_.front().message);
    current_bytes_ = pending_.front().num_bytes;
    pending_.pop_front();
    const absl::Status fits =
        CheckResponseBytes(static_cast<int64_t>(current_.ByteSizeLong()), max_message_bytes_);
    if (fits.ok()) {
      is_writing_ = true;
      if (model_call().limits().before_write != nullptr) model_call().limits().before_write();
      model_call().BeginUnread();
      StartWrite(&current_);
      return;
    }
    if (status_.ok()) status_ = fits;
    current_bytes_ = 0;
    GiveUpWriting();
    model_call().CancelRequest();
  }
  if (num_unfinished_ == 0) {
    is_finished_ = true;
    Finish(model_call().Close(status_));
  }
}

}  // namespace ultrasketch
