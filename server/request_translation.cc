#include "server/request_translation.h"

#include <algorithm>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/serving/engine_loop/validate_request.h"
#include "server/status.h"

namespace ultrasketch {
namespace {

constexpr int32_t kDefaultMaxTokens = 256;

uint64_t DrawSeed() {
  thread_local std::mt19937_64 generator = [] {
    std::random_device device;
    std::seed_seq seed = {device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }();
  return generator();
}

// The value of the first that is set.
template <typename T>
T FirstSet(bool is_set, T value, const std::optional<T>& model_default, T neutral) {
  return is_set ? value : model_default.value_or(neutral);
}

// `most_tokens`: the longest input that the model can take.
absl::Status CheckTextBytes(std::string_view text, int64_t most_tokens, const RequestModel& model) {
  const int64_t max_bytes = most_tokens * model.max_token_bytes;
  if (static_cast<int64_t>(text.size()) <= max_bytes) return absl::OkStatus();
  return InvalidField("text", absl::StrCat("its ", text.size(), " bytes are more than ", max_bytes,
                                           ", which ", most_tokens,
                                           " tokens can be at most: the model's context "
                                           "is ",
                                           model.max_context_tokens, " tokens"));
}

// `Message` has the oneof `input` of GenerateRequest.
template <typename Message>
absl::StatusOr<std::vector<int32_t>> TranslateInput(const Message& message, int64_t min_tokens,
                                                    int64_t max_tokens, const RequestModel& model,
                                                    const std::atomic<bool>* cancelled) {
  std::vector<int32_t> ids;
  const char* field = "text";
  switch (message.input_case()) {
    case Message::kText: {
      US_RETURN_IF_ERROR(CheckTextBytes(message.text(), max_tokens, model));
      absl::StatusOr<std::vector<int32_t>> encoded =
          model.tokenizer->Encode(message.text(), {.cancelled = cancelled});
      if (!encoded.ok()) return Annotate(encoded.status(), field);
      ids = *std::move(encoded);
      break;
    }
    case Message::kTokenIds:
      field = "token_ids";
      ids.assign(message.token_ids().ids().begin(), message.token_ids().ids().end());
      break;
    case Message::INPUT_NOT_SET:
      return InvalidField("input", "one of text and token_ids is required");
  }
  const int64_t num_tokens = static_cast<int64_t>(ids.size());
  if (num_tokens == 0) return InvalidField(field, "empty: at least one token is required");
  if (num_tokens < min_tokens) {
    return InvalidField(field,
                        absl::StrCat(num_tokens, " token; at least ", min_tokens, " are required"));
  }
  if (num_tokens > max_tokens) {
    return InvalidField(
        field, absl::StrCat(num_tokens, " tokens; at most ", max_tokens,
                            " fit: the model's context is ", model.max_context_tokens, " tokens"));
  }
  return ids;
}

// A count of log-probabilities; -1 when none are wanted, which a client says by leaving it unset.
absl::StatusOr<int32_t> TranslateLogprobs(const char* field, bool is_set, int32_t value) {
  if (!is_set) return -1;
  if (value < 0) return InvalidField(field, absl::StrCat(value, " is less than 0"));
  return value;
}

absl::StatusOr<SamplingParams> TranslateSampling(const v1::GenerateRequest& message,
                                                 const GenerationConfig& defaults) {
  const bool greedy_by_default = !defaults.do_sample.value_or(true);
  const std::optional<float> temperature =
      greedy_by_default ? std::optional<float>(0.0f) : defaults.temperature;
  SamplingParams params;
  params.temperature =
      FirstSet(message.has_temperature(), message.temperature(), temperature, params.temperature);
  params.top_k = FirstSet(message.has_top_k(), message.top_k(), defaults.top_k, params.top_k);
  params.top_p = FirstSet(message.has_top_p(), message.top_p(), defaults.top_p, params.top_p);
  params.min_p = FirstSet(message.has_min_p(), message.min_p(), defaults.min_p, params.min_p);
  params.repetition_penalty =
      FirstSet(message.has_repetition_penalty(), message.repetition_penalty(),
               defaults.repetition_penalty, params.repetition_penalty);
  params.presence_penalty = message.presence_penalty();
  params.frequency_penalty = message.frequency_penalty();
  if (params.top_p <= 0) {
    return InvalidField("top_p", absl::StrCat(params.top_p, " is outside (0, 1]"));
  }
  if (params.repetition_penalty > 2) {
    return InvalidField("repetition_penalty",
                        absl::StrCat(params.repetition_penalty, " is outside (0, 2]"));
  }
  for (const auto& [id, bias] : message.logit_bias()) {
    if (!(bias >= -100 && bias <= 100)) {
      return InvalidField("logit_bias",
                          absl::StrCat(bias, " for token ", id, " is outside [-100, 100]"));
    }
    params.logit_bias.emplace_back(id, bias);
  }
  // The map's order is random; the request's meaning must not depend on it.
  std::sort(params.logit_bias.begin(), params.logit_bias.end());
  params.seed = message.has_seed() ? message.seed() : DrawSeed();
  US_ASSIGN_OR_RETURN(params.num_logprobs,
                      TranslateLogprobs("logprobs", message.has_logprobs(), message.logprobs()));
  return params;
}

// Counts first: what is copied is bounded by more than the size of a message.
absl::Status TranslateStop(const v1::GenerateRequest& message, const RequestModel& model,
                           GenerationRequest& request) {
  if (message.stop_size() > kMaxStopStrings) {
    return InvalidField("stop", absl::StrCat(message.stop_size(), " strings; at most ",
                                             kMaxStopStrings, " are allowed"));
  }
  if (message.stop_token_ids_size() > kMaxStopTokenIds) {
    return InvalidField("stop_token_ids",
                        absl::StrCat(message.stop_token_ids_size(), " ids; at most ",
                                     kMaxStopTokenIds, " are allowed"));
  }
  request.stop.assign(message.stop().begin(), message.stop().end());
  request.stop_token_ids.assign(message.stop_token_ids().begin(), message.stop_token_ids().end());
  if (!message.ignore_eos()) request.eos_token_ids = model.eos_token_ids;
  request.include_stop_in_output = message.include_stop_in_output();
  request.skip_special_tokens = !message.has_skip_special_tokens() || message.skip_special_tokens();
  return absl::OkStatus();
}

// `max_tokens` and `min_tokens`, given how many tokens the prompt leaves.
absl::Status TranslateLength(const v1::GenerateRequest& message, int32_t tokens_left,
                             GenerationRequest& request) {
  const int32_t max_tokens = message.has_max_tokens() ? message.max_tokens() : kDefaultMaxTokens;
  if (max_tokens < 1)
    return InvalidField("max_tokens", absl::StrCat(max_tokens, " is less than 1"));
  if (message.min_tokens() < 0 || (message.has_max_tokens() && message.min_tokens() > max_tokens)) {
    return InvalidField(
        "min_tokens",
        absl::StrCat(message.min_tokens(), " is outside [0, max_tokens = ", max_tokens, "]"));
  }
  // Unset, max_tokens gives way.
  request.max_tokens = std::min(std::max(max_tokens, message.min_tokens()), tokens_left);
  request.min_tokens = std::min(message.min_tokens(), request.max_tokens);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GenerationRequest> TranslateGenerateRequest(const v1::GenerateRequest& message,
                                                           const RequestModel& model,
                                                           absl::Time deadline,
                                                           const std::atomic<bool>* cancelled) {
  GenerationRequest request;
  request.deadline = deadline;
  request.priority = message.priority();
  request.num_completions = message.has_n() ? message.n() : 1;
  if (request.num_completions < 1 || request.num_completions > kMaxCompletions) {
    return InvalidField(
        "n", absl::StrCat(request.num_completions, " is outside [1, ", kMaxCompletions, "]"));
  }
  US_ASSIGN_OR_RETURN(request.sampling, TranslateSampling(message, model.generation_config));
  US_ASSIGN_OR_RETURN(request.prompt_logprobs,
                      TranslateLogprobs("prompt_logprobs", message.has_prompt_logprobs(),
                                        message.prompt_logprobs()));
  US_RETURN_IF_ERROR(TranslateStop(message, model, request));
  // Before the tokenizer works: wrong whatever the prompt is.
  US_RETURN_IF_ERROR(TranslateLength(message, std::numeric_limits<int32_t>::max(), request));

  US_ASSIGN_OR_RETURN(request.prompt_ids,
                      TranslateInput(message, 1, model.max_context_tokens - 1, model, cancelled));
  const int32_t num_prompt_tokens = static_cast<int32_t>(request.prompt_ids.size());
  US_RETURN_IF_ERROR(
      TranslateLength(message, model.max_context_tokens - num_prompt_tokens, request));
  return request;
}

absl::StatusOr<ScoreRequest> TranslateScoreRequest(const v1::ScoreRequest& message,
                                                   const RequestModel& model, absl::Time deadline,
                                                   const std::atomic<bool>* cancelled) {
  ScoreRequest request;
  request.deadline = deadline;
  request.top_logprobs = message.top_logprobs();
  if (request.top_logprobs < 0 || request.top_logprobs > kMaxLogprobs) {
    return InvalidField("top_logprobs",
                        absl::StrCat(request.top_logprobs, " is outside [0, ", kMaxLogprobs, "]"));
  }
  US_ASSIGN_OR_RETURN(request.token_ids,
                      TranslateInput(message, 2, model.max_context_tokens, model, cancelled));
  return request;
}

int32_t LongestTokenBytes(const Tokenizer& tokenizer) {
  size_t longest = 1;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (const auto token = tokenizer.IdToToken(id)) longest = std::max(longest, token->size());
  }
  return static_cast<int32_t>(longest);
}

}  // namespace ultrasketch
