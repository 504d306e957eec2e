// How every call that runs on a model's engine begins.
#ifndef ULTRASKETCH_SERVER_BEGIN_CALL_H_
#define ULTRASKETCH_SERVER_BEGIN_CALL_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

#include "server/model_call.h"
#include "server/work_queue.h"

namespace ultrasketch {

// What is to be tokenized or copied; `Message` has the oneof `input` of GenerateRequest.
template <typename Message>
size_t InputBytes(const Message& message) {
  return message.text().size() +
         static_cast<size_t>(message.token_ids().ids_size()) * sizeof(int32_t) +
         message.messages().ByteSizeLong();
}

// Begins the call here, or on the queue's threads when its input is so long that event threads
// should not wait for it. `Call` is a pointer that keeps the call: to something that can be opened,
// begun and rejected, and has a model_call().
template <typename Call>
void BeginCall(const CallEnvironment& environment, Call call, size_t input_bytes) {
  absl::Status status = call->Open();
  if (status.ok() && input_bytes <= kShortTextBytes) {
    call->Begin();
    return;
  }
  if (status.ok()) {
    status = environment.long_texts.Add(WorkClass::kGeneration, &call->model_call(), input_bytes,
                                        [call] { call->Begin(); });
  }
  if (!status.ok()) call->Reject(status);
}

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_BEGIN_CALL_H_
