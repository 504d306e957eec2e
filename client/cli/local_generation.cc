#include "client/cli/local_generation.h"

#include <algorithm>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "absl/time/clock.h"

#include "client/cli/local_model.h"
#include "engine/base/status.h"
#include "engine/models/model.h"
#include "server/engine_loop/blocking.h"
#include "server/engine_loop/engine_loop.h"

namespace ultrasketch::cli {
namespace {

constexpr int32_t kDefaultMaxTokens = 256;

uint64_t DrawSeed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

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

absl::StatusOr<GenerationRequest> ToEngine(const client::GenerateRequest& request,
                                           const Checkpoint& checkpoint,
                                           const Tokenizer& tokenizer) {
  const GenerationConfig& defaults = checkpoint.generation_config();
  GenerationRequest result;
  if (const auto* text = std::get_if<std::string>(&request.prompt)) {
    US_ASSIGN_OR_RETURN(result.prompt_ids, tokenizer.Encode(*text));
  } else {
    result.prompt_ids = std::get<std::vector<int32_t>>(request.prompt);
  }
  const int64_t room =
      checkpoint.config().max_position_embeddings - static_cast<int64_t>(result.prompt_ids.size());
  result.max_tokens = request.max_tokens.value_or(
      static_cast<int32_t>(std::clamp<int64_t>(room, 1, kDefaultMaxTokens)));
  result.min_tokens = request.min_tokens.value_or(0);
  result.stop = request.stop;
  result.stop_token_ids = request.stop_token_ids;
  if (!request.ignore_eos.value_or(false)) result.eos_token_ids = checkpoint.eos_token_ids();
  result.include_stop_in_output = request.include_stop_in_output.value_or(false);
  result.skip_special_tokens = request.skip_special_tokens.value_or(true);
  result.num_completions = request.num_completions.value_or(1);
  result.prompt_logprobs = request.prompt_logprobs.value_or(-1);

  SamplingParams& sampling = result.sampling;
  const auto pick = [](auto wanted, auto model_default, auto neutral) {
    return wanted.has_value() ? *wanted : model_default.value_or(neutral);
  };
  sampling.temperature = pick(request.temperature, defaults.temperature, sampling.temperature);
  sampling.top_k = pick(request.top_k, defaults.top_k, sampling.top_k);
  sampling.top_p = pick(request.top_p, defaults.top_p, sampling.top_p);
  sampling.min_p = pick(request.min_p, defaults.min_p, sampling.min_p);
  sampling.repetition_penalty =
      pick(request.repetition_penalty, defaults.repetition_penalty, sampling.repetition_penalty);
  sampling.presence_penalty = request.presence_penalty.value_or(0.0f);
  sampling.frequency_penalty = request.frequency_penalty.value_or(0.0f);
  sampling.logit_bias = request.logit_bias;
  sampling.seed = request.seed.has_value() ? *request.seed : DrawSeed();
  sampling.num_logprobs = request.logprobs.value_or(-1);
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
  US_ASSIGN_OR_RETURN(LocalModelParts parts, OpenLocalModel(model));
  US_ASSIGN_OR_RETURN(GenerationRequest engine_request,
                      ToEngine(request, *parts.checkpoint, *parts.tokenizer));

  // A cache for this request alone. The engine refuses what exceeds the model's context.
  const ModelConfig& config = parts.checkpoint->config();
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

  US_ASSIGN_OR_RETURN(auto loaded, LoadModel(parts.checkpoint, parts.backend, model_options));
  auto loop = EngineLoop::Start(std::move(loaded), parts.tokenizer, loop_options);
  return std::make_unique<EngineGeneration>(parts.tokenizer, std::move(loop),
                                            std::move(engine_request));
}

}  // namespace ultrasketch::cli
