#include "client/cli/local_generation.h"

#include <algorithm>
#include <iostream>
#include <limits>
#include <utility>
#include <vector>

#include "absl/time/clock.h"

#include "client/cli/local_model.h"
#include "client/messages.h"
#include "engine/base/status.h"
#include "engine/models/model.h"
#include "engine/serving/engine_loop/blocking.h"
#include "engine/serving/engine_loop/engine_loop.h"
#include "server/request_translation.h"
#include "server/response_translation.h"

namespace ultrasketch::cli {
namespace {

class EngineGeneration final : public LocalGeneration {
 public:
  EngineGeneration(std::shared_ptr<const Tokenizer> tokenizer, std::unique_ptr<EngineLoop> loop,
                   GenerationRequest request)
      : tokenizer_(std::move(tokenizer)), loop_(std::move(loop)), request_(std::move(request)) {}

  absl::StatusOr<client::GenerateResponse> Run(
      const std::function<void(const client::GenerateDelta&)>& on_delta,
      const client::CallOptions& options) override {
    return GenerateLocally(*loop_, tokenizer_, std::move(request_), on_delta, options);
  }

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<EngineLoop> loop_;
  GenerationRequest request_;
};

}  // namespace

RequestModel LocalRequestModel(const OpenedModel& opened) {
  const ModelConfig& config = opened.checkpoint->config();
  RequestModel model;
  model.max_context_tokens = static_cast<int32_t>(
      std::min<int64_t>(config.max_position_embeddings, std::numeric_limits<int32_t>::max()));
  model.vocab_size = config.vocab_size;
  model.max_token_bytes = LongestTokenBytes(*opened.tokenizer);
  model.generation_config = opened.checkpoint->generation_config();
  model.eos_token_ids = opened.eos_token_ids;
  model.tokenizer = opened.tokenizer;
  model.chat_template = opened.chat_template;
  model.doubled_beginning = std::make_shared<OneTimeWarning>(
      [](const std::string& warning) { std::cerr << "warning: " << warning << "\n"; });
  return model;
}

absl::StatusOr<client::GenerateResponse> GenerateLocally(
    EngineLoop& loop, std::shared_ptr<const Tokenizer> tokenizer, GenerationRequest request,
    const std::function<void(const client::GenerateDelta&)>& on_delta,
    const client::CallOptions& options) {
  client::GenerateResponse response;
  GenerationTranslator translator(request, std::move(tokenizer));
  request.deadline = absl::Now() + options.timeout;
  US_ASSIGN_OR_RETURN(const std::vector<GenerationOutput> outputs,
                      GenerateAndWait(
                          loop, std::move(request),
                          [&](const GenerationDelta& delta) {
                            v1::GenerateDelta message;
                            message.set_index(delta.completion);
                            translator.AppendDelta(delta, message);
                            const client::GenerateDelta translated = client::FromMessage(message);
                            client::AddDelta(translated, &response);
                            on_delta(translated);
                          },
                          options.stop));
  for (const GenerationOutput& output : outputs) {
    client::AddFinal(translator.FinalOf(output.result), &response);
  }
  return response;
}

absl::StatusOr<std::unique_ptr<LocalGeneration>> LocalGeneration::Prepare(
    const LocalModelOptions& model, const client::GenerateRequest& request) {
  US_ASSIGN_OR_RETURN(LocalModelParts parts, OpenLocalModelParts(model));
  const ModelConfig& config = parts.opened.checkpoint->config();

  const RequestModel hosted = LocalRequestModel(parts.opened);
  US_ASSIGN_OR_RETURN(
      GenerationRequest engine_request,
      TranslateGenerateRequest(client::ToMessage(request), hosted, absl::InfiniteFuture()));

  // A cache for this request alone.
  const EngineLoopOptions loop_options;
  ModelOptions model_options;
  const int64_t tokens_per_completion =
      std::clamp<int64_t>(static_cast<int64_t>(engine_request.prompt_ids.size()) +
                              std::max(engine_request.max_tokens, 1),
                          1, config.max_position_embeddings);
  const int64_t num_completions =
      std::clamp(engine_request.num_completions, 1, loop_options.max_running_sequences);
  const int64_t blocks_per_completion =
      (tokens_per_completion + model_options.block_size - 1) / model_options.block_size;
  model_options.kv_cache_tokens =
      num_completions * blocks_per_completion * model_options.block_size;
  model_options.max_step_tokens = loop_options.max_step_tokens;
  model_options.kv_cache_type = model.kv_cache_type;

  US_ASSIGN_OR_RETURN(auto loaded,
                      LoadModel(parts.opened.checkpoint, parts.backend, model_options));
  auto loop = EngineLoop::Start(std::move(loaded), parts.opened.tokenizer, loop_options);
  return std::make_unique<EngineGeneration>(parts.opened.tokenizer, std::move(loop),
                                            std::move(engine_request));
}

}  // namespace ultrasketch::cli
