#include "server/text_call.h"

#include "server/status.h"

namespace ultrasketch {

void TextCall::Begin(size_t input_bytes) {
  absl::Status status = open_calls_.CheckUnreadAnswers();
  if (status.ok() && input_bytes <= kShortTextBytes) {
    Answer();
    return;
  }
  if (status.ok()) {
    status = queue_.Add(WorkClass::kTokenization, this, input_bytes, [this] { Answer(); });
  }
  if (!status.ok()) Close(status);
}

void TextCall::OnCancel() {
  client_gone_ = true;
  if (const auto work = queue_.Take(this)) work();
}

void TextCall::OnDone() {
  open_calls_.Remove(this);
  open_calls_.AddUnreadAnswer(-num_answer_bytes_);
  delete this;
}

void TextCall::CheckReader(absl::Time now) {
  if (!unread_.IsLongerThan(open_calls_.limits().max_unread_time, now)) return;
  unread_.End();
  context_->TryCancel();
}

void TextCall::Answer() {
  Close(client_gone_ ? absl::CancelledError("the client has gone") : work_(client_gone_));
}

void TextCall::Close(const absl::Status& status) {
  record_.Finish(status, model_);
  if (status.ok()) {
    num_answer_bytes_ = static_cast<int64_t>(response_.ByteSizeLong());
    open_calls_.AddUnreadAnswer(num_answer_bytes_);
  }
  unread_.Begin();
  Finish(ToGrpcStatus(status, *context_));
}

}  // namespace ultrasketch
