#include "server/engine_call.h"

#include "engine/base/status.h"
#include "server/status.h"
#include "server/work_queue.h"

namespace ultrasketch {

void EngineCall::Start(size_t input_bytes) {
  absl::Status status = Open();
  if (status.ok() && input_bytes <= kShortTextBytes) {
    Begin();
    return;
  }
  if (status.ok()) {
    status = call_.environment().long_texts.Add(WorkClass::kGeneration, &call_, input_bytes,
                                                [call = shared_from_this()] { call->Begin(); });
  }
  if (!status.ok()) Reject(status);
}

absl::Status EngineCall::Open() {
  US_RETURN_IF_ERROR(call_.Open(model_name()));
  US_RETURN_IF_ERROR(CheckForm());
  return CheckRoom();
}

absl::Status EngineCall::CheckRoom() {
  const Demand wanted = demand();
  return call_.CheckRoom(wanted.num_completions, wanted.num_prompt_tokens);
}

void EngineCall::Begin() {
  if (const absl::Status status = TrySubmit(); !status.ok()) Reject(status);
}

absl::Status EngineCall::TrySubmit() {
  US_RETURN_IF_ERROR(call_.CheckClientWaits());
  US_RETURN_IF_ERROR(CheckRoom());
  return Submit(*call_.model());
}

void EngineCall::Reject(const absl::Status& status) {
  call_.GiveUpPlace();
  if (!IsTryAgainLater(status)) {
    Refuse(status);
    return;
  }
  refusal_ = status;
  call_.environment().refusals.Add(shared_from_this());
}

}  // namespace ultrasketch
