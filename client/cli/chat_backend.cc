#include "client/cli/chat_backend.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "client/cli/local_generation.h"
#include "client/messages.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/models/memory_plan.h"
#include "engine/models/model.h"
#include "engine/serving/engine_loop/engine_loop.h"
#include "server/request_translation.h"

namespace ultrasketch::cli {
namespace {

class RemoteChat final : public ChatBackend {
 public:
  RemoteChat(std::unique_ptr<client::Client> client, const client::ModelInfo& model)
      : client_(std::move(client)) {
    name_ = model.name;
    max_context_tokens_ = model.max_context_tokens;
  }

  absl::StatusOr<client::GenerateResponse> GenerateStream(
      client::GenerateRequest request,
      const std::function<void(const client::GenerateDelta&)>& on_delta,
      const client::CallOptions& options) override {
    request.model = name_;
    return client_->GenerateStream(request, on_delta, options);
  }

  absl::StatusOr<int64_t> CountTokens(const client::Chat& chat,
                                      const client::CallOptions& options) override {
    client::TokenizeRequest request;
    request.model = name_;
    request.chat = chat;
    US_ASSIGN_OR_RETURN(const client::Tokens tokens, client_->Tokenize(request, options));
    return static_cast<int64_t>(tokens.ids.size());
  }

 private:
  const std::unique_ptr<client::Client> client_;
};

class LocalChat final : public ChatBackend {
 public:
  LocalChat(std::string folder, RequestModel model, std::unique_ptr<EngineLoop> loop)
      : model_(std::move(model)), loop_(std::move(loop)) {
    name_ = std::move(folder);
    max_context_tokens_ = model_.max_context_tokens;
  }

  absl::StatusOr<client::GenerateResponse> GenerateStream(
      client::GenerateRequest request,
      const std::function<void(const client::GenerateDelta&)>& on_delta,
      const client::CallOptions& options) override {
    US_ASSIGN_OR_RETURN(
        GenerationRequest translated,
        TranslateGenerateRequest(client::ToMessage(request), model_, absl::InfiniteFuture()));
    return GenerateLocally(*loop_, model_.tokenizer, std::move(translated), on_delta, options);
  }

  absl::StatusOr<int64_t> CountTokens(const client::Chat& chat,
                                      const client::CallOptions& options) override {
    client::TokenizeRequest request;
    request.chat = chat;
    US_ASSIGN_OR_RETURN(const RenderedChat rendered,
                        RenderChat(client::ToMessage(request).messages(), model_));
    const StopFlag stop(options.stop);
    US_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                        TokenizeChat(rendered, model_, stop.flag()));
    return static_cast<int64_t>(ids.size());
  }

 private:
  const RequestModel model_;
  const std::unique_ptr<EngineLoop> loop_;
};

// The model of this name, or the only one.
absl::StatusOr<client::ModelInfo> FindModel(client::Client& client, const std::string& name,
                                            const client::CallOptions& options) {
  if (!name.empty()) return client.GetModel(name, options);
  US_ASSIGN_OR_RETURN(const auto models, client.ListModels(options));
  if (models.size() == 1) return models.front();
  std::vector<std::string> names;
  for (const client::ModelInfo& model : models) names.push_back(model.name);
  return absl::InvalidArgumentError(
      names.empty() ? "the server hosts no model"
                    : absl::StrCat("the server hosts several models; say which with --model: ",
                                   absl::StrJoin(names, ", ")));
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChatBackend>> OpenRemoteChat(std::unique_ptr<client::Client> client,
                                                            const std::string& model,
                                                            const client::CallOptions& options) {
  US_ASSIGN_OR_RETURN(const client::ModelInfo info, FindModel(*client, model, options));
  if (info.state != "ready") {
    return absl::UnavailableError(
        absl::StrCat("model ", Quoted(info.name), " is ", info.state,
                     info.error.empty() ? "" : absl::StrCat(": ", info.error)));
  }
  std::unique_ptr<ChatBackend> backend = std::make_unique<RemoteChat>(std::move(client), info);
  if (!info.chat) {
    // The server says why.
    client::Chat probe;
    probe.messages.push_back({"user", "?"});
    US_RETURN_IF_ERROR(backend->CountTokens(probe, options).status());
    return absl::FailedPreconditionError(
        absl::StrCat("model ", Quoted(info.name), " takes no conversations"));
  }
  return backend;
}

absl::StatusOr<std::unique_ptr<ChatBackend>> OpenLocalChat(const LocalModelOptions& options) {
  US_ASSIGN_OR_RETURN(LocalModelParts parts, OpenLocalModelParts(options));
  US_RETURN_IF_ERROR(parts.opened.chat_template.status());
  EngineLoopOptions loop_options;
  loop_options.max_running_sequences = 1;
  ModelOptions model_options;
  model_options.max_step_tokens = loop_options.max_step_tokens;
  US_ASSIGN_OR_RETURN(
      model_options.kv_cache_tokens,
      PlanKvCacheTokens(*parts.opened.checkpoint, model_options, *parts.backend,
                        {parts.backend->available_bytes(), loop_options.max_running_sequences}));
  RequestModel model = LocalRequestModel(parts.opened);
  US_ASSIGN_OR_RETURN(auto loaded,
                      LoadModel(parts.opened.checkpoint, parts.backend, model_options));
  const KvCacheLayout& cache = loaded->cache_layout();
  model.max_context_tokens = static_cast<int32_t>(
      std::min<int64_t>(model.max_context_tokens, cache.num_blocks * cache.block_size));
  auto loop = EngineLoop::Start(std::move(loaded), parts.opened.tokenizer, loop_options);
  return std::make_unique<LocalChat>(options.folder, std::move(model), std::move(loop));
}

}  // namespace ultrasketch::cli
