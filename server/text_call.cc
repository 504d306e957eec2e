#include "server/text_call.h"

#include "server/status.h"

namespace ultrasketch {

void TextCall::Begin(size_t input_bytes) {
  if (input_bytes <= kShortTextBytes) {
    Answer();
    return;
  }
  const absl::Status status =
      queue_.Add(WorkClass::kTokenization, this, input_bytes, [this] { Answer(); });
  if (!status.ok()) Close(status);
}

void TextCall::OnCancel() {
  client_gone_ = true;
  if (const auto work = queue_.Take(this)) work();
}

void TextCall::Answer() {
  const absl::Status status =
      client_gone_ ? absl::CancelledError("the client has gone") : work_(client_gone_);
  Close(status);
}

void TextCall::Close(const absl::Status& status) {
  record_.Finish(status, model_);
  Finish(ToGrpcStatus(status, *context_));
}

}  // namespace ultrasketch
