#include "server/generation_service.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "server/engine_call.h"
#include "server/generate_call.h"
#include "server/request_translation.h"
#include "server/response_limit.h"
#include "server/score_call.h"
#include "server/status.h"
#include "server/stream_call.h"
#include "server/text_call.h"

namespace ultrasketch {
namespace {

// How many tokens are answered between two looks at whether anybody still waits.
constexpr size_t kTokensBetweenChecks = 4096;

// The least that a token takes of an answer: an id and a spelling of one byte.
constexpr int64_t kMinTokenBytes = 1 + 3;

// Sorting a large logit_bias takes as long as tokenizing a long text.
size_t BiasBytes(const v1::GenerateRequest& request) {
  return static_cast<size_t>(request.logit_bias_size()) * (sizeof(int32_t) + sizeof(float));
}

absl::Status ClientGone() { return absl::CancelledError("the client has gone"); }

// The ids of the request's text or conversation, unless the answer would be above `limit`.
absl::StatusOr<std::vector<int32_t>> EncodeInput(const v1::TokenizeRequest& request,
                                                 const HostedModel& model, int64_t limit,
                                                 const std::atomic<bool>& client_gone) {
  const auto check_fits = [&](const std::string& text) {
    return CheckResponseBytes(
        static_cast<int64_t>(text.size()) / model.max_token_bytes * kMinTokenBytes, limit);
  };
  if (request.has_messages()) {
    US_ASSIGN_OR_RETURN(const RenderedChat chat, RenderChat(request.messages(), model));
    US_RETURN_IF_ERROR(check_fits(chat.text));
    return TokenizeChat(chat, model, &client_gone);
  }
  US_RETURN_IF_ERROR(check_fits(request.text()));
  EncodeOptions options = EncodeOptionsOf(request);
  options.cancelled = &client_gone;
  const absl::StatusOr<std::vector<int32_t>> ids = model.tokenizer->Encode(request.text(), options);
  if (!ids.ok()) return Annotate(ids.status(), "text");
  return ids;
}

// For the log, if it is to have prompts.
template <typename Message>
void KeepPrompt(const Message& request, RequestRecord& record) {
  if (!record.wants_prompt()) return;
  record.SetPrompt(request.has_messages() ? request.messages().ShortDebugString() : request.text());
}

absl::Status Tokenize(const ModelHost& host, const v1::TokenizeRequest& request,
                      const std::atomic<bool>& client_gone, v1::TokenizeResponse& response) {
  US_ASSIGN_OR_RETURN(const auto model, host.FindReady(request.model()));
  US_ASSIGN_OR_RETURN(const int64_t limit, MaxResponseBytes(request));
  US_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                      EncodeInput(request, *model, limit, client_gone));
  US_RETURN_IF_ERROR(CheckResponseBytes(static_cast<int64_t>(ids.size()) * kMinTokenBytes, limit));
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i % kTokensBetweenChecks == 0 && client_gone) return ClientGone();
    response.add_token_ids(ids[i]);
    response.add_tokens(model->tokenizer->IdToToken(ids[i]).value_or(""));
  }
  return CheckResponseBytes(static_cast<int64_t>(response.ByteSizeLong()), limit);
}

absl::Status Detokenize(const ModelHost& host, const v1::DetokenizeRequest& request,
                        const std::atomic<bool>& client_gone, v1::DetokenizeResponse& response) {
  US_ASSIGN_OR_RETURN(const auto model, host.FindReady(request.model()));
  US_ASSIGN_OR_RETURN(const int64_t limit, MaxResponseBytes(request));
  const std::vector<int32_t> ids(request.token_ids().begin(), request.token_ids().end());
  // What the model can generate, and what Tokenize gives.
  const int32_t num_ids = std::max(model->vocab_size, model->tokenizer->vocab_size());
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= num_ids) {
      return InvalidField("token_ids",
                          absl::StrCat("id ", ids[i], " at index ", i,
                                       " is outside the vocabulary of ", num_ids, " tokens"));
    }
  }
  std::string& text = *response.mutable_text();
  DetokenizerStream stream(*model->tokenizer, request.skip_special_tokens());
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i % kTokensBetweenChecks == 0 && client_gone) return ClientGone();
    text += stream.Add(ids[i]);
  }
  text += stream.Finish();
  return CheckResponseBytes(static_cast<int64_t>(response.ByteSizeLong()), limit);
}

}  // namespace

GenerationService::GenerationService(const ModelHost& host, Metrics& metrics,
                                     const RequestLog& request_log,
                                     const WorkQueueOptions& long_texts, const CallLimits& limits)
    : refusals_(limits.refusals),
      long_texts_(long_texts),
      environment_{
          host,        metrics,
          long_texts_, refusals_,
          request_log, std::make_shared<OpenCalls>(limits, metrics.calls().unread_bytes())} {}

grpc::ServerUnaryReactor* GenerationService::Generate(grpc::CallbackServerContext* context,
                                                      const v1::GenerateRequest* request,
                                                      v1::GenerateResponse* response) {
  const auto call = GenerateCall::Create(environment_, context, request, response);
  KeepPrompt(*request, call->model_call().record());
  call->Start(InputBytes(*request) + BiasBytes(*request));
  return call.get();
}

grpc::ServerWriteReactor<v1::GenerateStreamResponse>* GenerationService::GenerateStream(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  const auto call = StreamCall::Create(environment_, context, request);
  KeepPrompt(*request, call->model_call().record());
  call->Start(InputBytes(*request) + BiasBytes(*request));
  return call.get();
}

grpc::ServerUnaryReactor* GenerationService::Score(grpc::CallbackServerContext* context,
                                                   const v1::ScoreRequest* request,
                                                   v1::ScoreResponse* response) {
  const auto call = ScoreCall::Create(environment_, context, request, response);
  KeepPrompt(*request, call->model_call().record());
  call->Start(InputBytes(*request));
  return call.get();
}

grpc::ServerUnaryReactor* GenerationService::Tokenize(grpc::CallbackServerContext* context,
                                                      const v1::TokenizeRequest* request,
                                                      v1::TokenizeResponse* response) {
  auto* call = new TextCall(environment_, "Tokenize", context, request->model(), *response,
                            [this, request, response](const std::atomic<bool>& client_gone) {
                              return ultrasketch::Tokenize(environment_.host, *request, client_gone,
                                                           *response);
                            });
  KeepPrompt(*request, call->record());
  call->Begin(request->text().size() + request->messages().ByteSizeLong());
  return call;
}

grpc::ServerUnaryReactor* GenerationService::Detokenize(grpc::CallbackServerContext* context,
                                                        const v1::DetokenizeRequest* request,
                                                        v1::DetokenizeResponse* response) {
  auto* call = new TextCall(environment_, "Detokenize", context, request->model(), *response,
                            [this, request, response](const std::atomic<bool>& client_gone) {
                              return ultrasketch::Detokenize(environment_.host, *request,
                                                             client_gone, *response);
                            });
  call->Begin(static_cast<size_t>(request->token_ids_size()) * sizeof(int32_t));
  return call;
}

}  // namespace ultrasketch
