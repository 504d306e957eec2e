// A call that runs on a model's engine, from its arrival until the engine has it or it is refused:
// what Generate, GenerateStream, Score and each request of a KServe stream have in common.
#ifndef ULTRASKETCH_SERVER_ENGINE_CALL_H_
#define ULTRASKETCH_SERVER_ENGINE_CALL_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include <grpcpp/server_context.h>

#include "server/model_call.h"
#include "server/model_host.h"
#include "server/refusal_pacer.h"

namespace ultrasketch {

// What is to be tokenized or copied; `Message` has the oneof `input` of GenerateRequest.
template <typename Message>
size_t InputBytes(const Message& message) {
  return message.text().size() +
         static_cast<size_t>(message.token_ids().ids_size()) * sizeof(int32_t) +
         message.messages().ByteSizeLong();
}

class EngineCall : public RefusedCall, public std::enable_shared_from_this<EngineCall> {
 public:
  // Once: finds the model, and whether there is room; then validates, tokenizes and submits, here
  // or, when the input is so long that event threads should not wait for it, on the threads for
  // long texts. A call that does not get as far as the engine is refused: now, or a little later
  // if it may come again.
  void Start(size_t input_bytes);

  ModelCall& model_call() { return call_; }
  const ModelCall& model_call() const { return call_; }

  void AnswerRefusal() final { Refuse(refusal_); }

 protected:
  // What the call takes of its model's queue.
  struct Demand {
    int64_t num_completions = 1;
    int64_t num_prompt_tokens = 0;  // about
  };

  // As ModelCall's.
  EngineCall(const CallEnvironment& environment, std::string_view method,
             grpc::CallbackServerContext* context,
             std::function<void(const absl::Status&)> on_slow_reader = nullptr)
      : call_(environment, method, context, std::move(on_slow_reader)) {}

  // gRPC has the call from now on, until OnDone calls LetGo.
  void KeepUntilDone() { self_ = shared_from_this(); }
  void LetGo() {
    call_.OnDone();
    self_.reset();
  }

  // This call, as one of its other bases.
  template <typename Base, typename Derived>
  static std::shared_ptr<Base> Share(Derived* call) {
    return std::shared_ptr<Base>(call->shared_from_this(), call);
  }

  virtual const std::string& model_name() const = 0;  // as the client names it
  virtual Demand demand() const = 0;
  // Why there is no such request, whatever the model; before there is anything to pay for.
  virtual absl::Status CheckForm() const { return absl::OkStatus(); }
  // Validates, tokenizes and submits. Takes as long as tokenizing does.
  virtual absl::Status Submit(const HostedModel& model) = 0;
  // Ends the call, which the engine does not have. Once.
  virtual void Refuse(const absl::Status& status) = 0;

  // Of a request that is about to be submitted: who asks, and since when.
  template <typename Request>
  void Sign(Request& request) const {
    request.arrival = call_.arrival();
    request.client = call_.client();
  }

 private:
  absl::Status Open();
  absl::Status CheckRoom();
  void Begin();
  absl::Status TrySubmit();
  void Reject(const absl::Status& status);

  ModelCall call_;
  std::shared_ptr<EngineCall> self_;  // until OnDone
  absl::Status refusal_;              // set before the pacer has the call
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_ENGINE_CALL_H_
