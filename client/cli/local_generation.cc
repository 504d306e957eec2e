#include "client/cli/local_generation.h"

#include <algorithm>
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

namespace ultrasketch::cli {
namespace {

client::FinishReason ToClient(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return client::FinishReason::kStop;
    case FinishReason::kLength:
      return client::FinishReason::kLength;
    case FinishReason::kCancelled:
      return client::FinishReason::kCancelled;
    case FinishReason::kError:
      return client::FinishReason::kError;
  }
  return client::FinishReason::kUnspecified;
}

std::vector<client::TokenLogprobs> ToClient(const std::vector<SampledToken>& tokens,
                                            const Tokenizer& tokenizer) {
  const auto entry = [&tokenizer](int32_t id, float logprob) {
    return client::TokenLogprob{id, logprob, tokenizer.Decode({id}, false)};
  };
  std::vector<client::TokenLogprobs> result;
  for (const SampledToken& token : tokens) {
    client::TokenLogprobs& logprobs = result.emplace_back();
    logprobs.token = entry(token.id, token.logprob);
    for (const TokenLogprob& top : token.top) logprobs.top.push_back(entry(top.id, top.logprob));
  }
  return result;
}

class EngineGeneration final : public LocalGeneration {
 public:
  EngineGeneration(std::shared_ptr<const Tokenizer> tokenizer, std::unique_ptr<EngineLoop> loop,
                   GenerationRequest request)
      : tokenizer_(std::move(tokenizer)), loop_(std::move(loop)), request_(std::move(request)) {}

  absl::StatusOr<client::GenerateResponse> Run(
      const std::function<void(const client::GenerateDelta&)>& on_delta,
      const client::CallOptions& options) override {
    client::GenerateResponse response;
    response.seed = request_.sampling.seed;
    request_.deadline = absl::Now() + options.timeout;
    const std::stop_callback on_stop(options.stop, [this] { loop_->Drain(absl::Now()); });
    US_ASSIGN_OR_RETURN(
        const std::vector<GenerationOutput> outputs,
        GenerateAndWait(*loop_, std::move(request_), [&](const GenerationDelta& delta) {
          on_delta({delta.completion, delta.text, delta.token_ids, {}});
        }));

    for (const GenerationOutput& output : outputs) {
      const GenerationResult& result = output.result;
      client::Completion& completion = response.completions.emplace_back();
      completion.text = output.text;
      completion.token_ids = output.token_ids;
      completion.finish_reason = ToClient(result.reason);
      completion.stop_string = result.stop_string;
      completion.logprobs = ToClient(output.logprobs, *tokenizer_);
      response.usage.prompt_tokens = result.num_prompt_tokens;
      response.usage.cached_prompt_tokens = result.num_cached_prompt_tokens;
      response.usage.completion_tokens += result.num_completion_tokens;
      if (result.timing.decode >= response.timing.decode) {
        response.timing = {result.timing.queue, result.timing.prefill, result.timing.decode,
                           result.timing.num_steps, result.timing.mean_batch_size};
      }
    }
    response.usage.total_tokens = response.usage.prompt_tokens + response.usage.completion_tokens;
    response.prompt_logprobs = ToClient(outputs.front().result.prompt_logprobs, *tokenizer_);
    return response;
  }

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<EngineLoop> loop_;
  GenerationRequest request_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<LocalGeneration>> LocalGeneration::Prepare(
    const LocalModelOptions& model, const client::GenerateRequest& request) {
  US_ASSIGN_OR_RETURN(LocalModelParts parts, OpenLocalModelParts(model));
  const ModelConfig& config = parts.opened.checkpoint->config();

  // Translated as the server does it, so that defaults and errors are the same.
  RequestModel hosted;
  hosted.max_context_tokens = static_cast<int32_t>(
      std::min<int64_t>(config.max_position_embeddings, std::numeric_limits<int32_t>::max()));
  hosted.vocab_size = config.vocab_size;
  hosted.max_token_bytes = LongestTokenBytes(*parts.opened.tokenizer);
  hosted.generation_config = parts.opened.checkpoint->generation_config();
  hosted.eos_token_ids = parts.opened.eos_token_ids;
  hosted.tokenizer = parts.opened.tokenizer;
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

  US_ASSIGN_OR_RETURN(auto loaded,
                      LoadModel(parts.opened.checkpoint, parts.backend, model_options));
  auto loop = EngineLoop::Start(std::move(loaded), parts.opened.tokenizer, loop_options);
  return std::make_unique<EngineGeneration>(parts.opened.tokenizer, std::move(loop),
                                            std::move(engine_request));
}

}  // namespace ultrasketch::cli
