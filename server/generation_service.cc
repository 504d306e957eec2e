#include "server/generation_service.h"

#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

#include "engine/base/status.h"
#include "server/generate_call.h"
#include "server/score_call.h"
#include "server/status.h"
#include "server/stream_call.h"

namespace ultrasketch {
namespace {

// About a millisecond of tokenizing.
constexpr size_t kShortInputBytes = 8192;
constexpr int kNumLongInputThreads = 2;
constexpr size_t kMaxQueuedLongInputs = 256;

absl::Time DeadlineOf(const grpc::CallbackServerContext& context) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return absl::FromChrono(deadline);
}

// Of the oneof `input`.
template <typename Message>
size_t InputBytes(const Message& message) {
  return message.text().size() +
         static_cast<size_t>(message.token_ids().ids_size()) * sizeof(int32_t);
}

absl::Status Tokenize(const ModelHost& host, const v1::TokenizeRequest& request,
                      v1::TokenizeResponse& response) {
  US_ASSIGN_OR_RETURN(const auto model, host.FindReady(request.model()));
  EncodeOptions options;
  options.add_special_tokens = !request.has_add_special_tokens() || request.add_special_tokens();
  const absl::StatusOr<std::vector<int32_t>> ids =
      model->tokenizer->Encode(request.text(), options);
  if (!ids.ok()) return Annotate(ids.status(), "text");
  for (const int32_t id : *ids) {
    response.add_token_ids(id);
    response.add_tokens(model->tokenizer->IdToToken(id).value_or(""));
  }
  return absl::OkStatus();
}

absl::Status Detokenize(const ModelHost& host, const v1::DetokenizeRequest& request,
                        v1::DetokenizeResponse& response) {
  US_ASSIGN_OR_RETURN(const auto model, host.FindReady(request.model()));
  const std::vector<int32_t> ids(request.token_ids().begin(), request.token_ids().end());
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= model->vocab_size) {
      return InvalidField("token_ids", absl::StrCat("id ", ids[i], " at index ", i,
                                                    " is outside the vocabulary of ",
                                                    model->vocab_size, " tokens"));
    }
  }
  response.set_text(model->tokenizer->Decode(ids, request.skip_special_tokens()));
  return absl::OkStatus();
}

}  // namespace

GenerationService::GenerationService(const ModelHost& host, Metrics& metrics)
    : environment_{host, metrics, std::make_shared<OpenCalls>()},
      long_inputs_(kNumLongInputThreads, kMaxQueuedLongInputs) {}

absl::Status GenerationService::Run(size_t input_bytes, std::function<void()> work) {
  if (input_bytes <= kShortInputBytes) {
    work();
    return absl::OkStatus();
  }
  if (long_inputs_.TryAdd(std::move(work))) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("the queue is full: ", kMaxQueuedLongInputs,
                                                   " long inputs wait for being tokenized"));
}

template <typename Call>
void GenerationService::Begin(Call call, size_t input_bytes) {
  const absl::Status status = Run(input_bytes, [call] { call->Begin(); });
  if (!status.ok()) call->Reject(status);
}

grpc::ServerUnaryReactor* GenerationService::Generate(grpc::CallbackServerContext* context,
                                                      const v1::GenerateRequest* request,
                                                      v1::GenerateResponse* response) {
  const auto call = GenerateCall::Create(environment_, DeadlineOf(*context), request, response);
  Begin(call, InputBytes(*request));
  return call.get();
}

grpc::ServerWriteReactor<v1::GenerateStreamResponse>* GenerationService::GenerateStream(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  const auto call = StreamCall::Create(environment_, DeadlineOf(*context), request);
  Begin(call, InputBytes(*request));
  return call.get();
}

grpc::ServerUnaryReactor* GenerationService::Score(grpc::CallbackServerContext* context,
                                                   const v1::ScoreRequest* request,
                                                   v1::ScoreResponse* response) {
  const auto call = ScoreCall::Create(environment_, DeadlineOf(*context), request, response);
  Begin(call, InputBytes(*request));
  return call.get();
}

grpc::ServerUnaryReactor* GenerationService::Tokenize(grpc::CallbackServerContext* context,
                                                      const v1::TokenizeRequest* request,
                                                      v1::TokenizeResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status status =
      Run(request->text().size(), [host = &environment_.host, reactor, request, response] {
        reactor->Finish(ToGrpcStatus(ultrasketch::Tokenize(*host, *request, *response)));
      });
  if (!status.ok()) reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

grpc::ServerUnaryReactor* GenerationService::Detokenize(grpc::CallbackServerContext* context,
                                                        const v1::DetokenizeRequest* request,
                                                        v1::DetokenizeResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const size_t input_bytes = static_cast<size_t>(request->token_ids_size()) * sizeof(int32_t);
  const absl::Status status =
      Run(input_bytes, [host = &environment_.host, reactor, request, response] {
        reactor->Finish(ToGrpcStatus(ultrasketch::Detokenize(*host, *request, *response)));
      });
  if (!status.ok()) reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace ultrasketch
