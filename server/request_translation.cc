#include "server/request_translation.h"

#include <algorithm>
#include <optional>
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

// Why no prompt may have more tokens.
std::string PromptLimit(int64_t most_tokens, const RequestModel& model) {
  return model.max_prompt_tokens == most_tokens
             ? absl::StrCat("the server takes prompts of ", most_tokens,
                            " tokens (--max-prompt-tokens)")
             : absl::StrCat("the model's context is ", model.max_context_tokens, " tokens");
}

// The longest prompt, when the context leaves so much for it.
int64_t MaxPromptTokens(int64_t context_tokens, const RequestModel& model) {
  return model.max_prompt_tokens > 0 ? std::min<int64_t>(context_tokens, model.max_prompt_tokens)
                                     : context_tokens;
}

// `most_tokens`: the longest input that the model can take.
absl::Status CheckTextBytes(const char* field, size_t num_bytes, int64_t most_tokens,
                            const RequestModel& model) {
  const int64_t max_bytes = most_tokens * model.max_token_bytes;
  if (static_cast<int64_t>(num_bytes) <= max_bytes) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("its ", num_bytes, " bytes are more than ", max_bytes,
                                          ", which ", most_tokens, " tokens can be at most: ",
                                          PromptLimit(most_tokens, model)));
}

// An error about a conversation, whatever its kind: another conversation, or a text, may do.
absl::Status ChatError(const absl::Status& status) {
  if (status.ok() || absl::IsCancelled(status)) return status;
  return InvalidField("messages", S(status.message()));
}

// `ids` are those of a text with what the template adds.
void WarnOfDoubledBeginning(const std::vector<int32_t>& ids, const RequestModel& model) {
  if (model.doubled_beginning == nullptr || ids.size() < 2 || ids[0] != ids[1]) return;
  const std::vector<int32_t> added = model.tokenizer->TemplateIds();
  if (added.empty() || added.front() != ids[0]) return;
  model.doubled_beginning->Give(absl::StrCat(
      "a text begins with ", A(Quoted(model.tokenizer->IdToToken(ids[0]).value_or(""))),
      ", which the template of tokenizer.json puts in front of every text: the model sees it "
      "twice. Send such a text with add_special_tokens = false, or without the token"));
}

template <typename Message>
absl::StatusOr<std::vector<int32_t>> TranslateText(const Message& message, int64_t max_tokens,
                                                   const RequestModel& model,
                                                   const std::atomic<bool>* cancelled) {
  US_RETURN_IF_ERROR(CheckTextBytes("text", message.text().size(), max_tokens, model));
  EncodeOptions options = EncodeOptionsOf(message);
  options.cancelled = cancelled;
  absl::StatusOr<std::vector<int32_t>> ids = model.tokenizer->Encode(message.text(), options);
  if (!ids.ok()) return Annotate(ids.status(), "text");
  US_RETURN_IF_ERROR(CheckIdsOfText(*model.tokenizer, *ids, model.vocab_size));
  if (options.add_special_tokens) WarnOfDoubledBeginning(*ids, model);
  return ids;
}

absl::StatusOr<std::vector<int32_t>> TranslateChat(const v1::ChatInput& input, int64_t max_tokens,
                                                   const RequestModel& model,
                                                   const std::atomic<bool>* cancelled) {
  // What cannot fit is not rendered either.
  size_t num_bytes = 0;
  for (const v1::ChatMessage& message : input.messages()) num_bytes += message.content().size();
  US_RETURN_IF_ERROR(CheckTextBytes("messages", num_bytes, max_tokens, model));
  US_ASSIGN_OR_RETURN(const RenderedChat chat, RenderChat(input, model));
  US_RETURN_IF_ERROR(CheckTextBytes("messages", chat.text.size(), max_tokens, model));
  US_ASSIGN_OR_RETURN(std::vector<int32_t> ids, TokenizeChat(chat, model, cancelled));
  US_RETURN_IF_ERROR(ChatError(CheckIdsOfText(*model.tokenizer, ids, model.vocab_size)));
  return ids;
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
      US_ASSIGN_OR_RETURN(ids, TranslateText(message, max_tokens, model, cancelled));
      break;
    }
    case Message::kTokenIds:
      field = "token_ids";
      ids.assign(message.token_ids().ids().begin(), message.token_ids().ids().end());
      break;
    case Message::kMessages: {
      field = "messages";
      US_ASSIGN_OR_RETURN(ids, TranslateChat(message.messages(), max_tokens, model, cancelled));
      break;
    }
    case Message::INPUT_NOT_SET:
      return InvalidField("input", "one of text, token_ids and messages is required");
  }
  const int64_t num_tokens = static_cast<int64_t>(ids.size());
  if (num_tokens == 0) return InvalidField(field, "empty: at least one token is required");
  if (num_tokens < min_tokens) {
    return InvalidField(field,
                        absl::StrCat(num_tokens, " token; at least ", min_tokens, " are required"));
  }
  if (num_tokens > max_tokens) {
    return InvalidField(field, absl::StrCat(num_tokens, " tokens; at most ", max_tokens,
                                            " fit: ", PromptLimit(max_tokens, model)));
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
                                                 const RequestModel& model) {
  const GenerationConfig& defaults = model.generation_config;
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
  // First: what is copied and sorted is bounded by more than the size of a message.
  if (message.logit_bias_size() > model.vocab_size) {
    return InvalidField("logit_bias", absl::StrCat(message.logit_bias_size(),
                                                   " entries; the "
                                                   "vocabulary has ",
                                                   model.vocab_size, " tokens"));
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

absl::Status TranslateStop(const v1::GenerateRequest& message, const RequestModel& model,
                           GenerationRequest& request) {
  // First: what is copied is bounded by more than the size of a message.
  US_RETURN_IF_ERROR(ValidateStopCounts(message.stop_size(), message.stop_token_ids_size()));
  request.stop.assign(message.stop().begin(), message.stop().end());
  request.stop_token_ids.assign(message.stop_token_ids().begin(), message.stop_token_ids().end());
  if (!message.ignore_eos()) request.eos_token_ids = model.eos_token_ids;
  request.include_stop_in_output = message.include_stop_in_output();
  request.skip_special_tokens = !message.has_skip_special_tokens() || message.skip_special_tokens();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RenderedChat> RenderChat(const v1::ChatInput& input, const RequestModel& model) {
  if (!model.chat_template.ok()) return ChatError(model.chat_template.status());
  if (input.messages_size() > kMaxChatMessages) {
    return InvalidField("messages", absl::StrCat(input.messages_size(), " messages; at most ",
                                                 kMaxChatMessages, " are allowed"));
  }
  std::vector<ChatMessage> messages;
  messages.reserve(static_cast<size_t>(input.messages_size()));
  for (const v1::ChatMessage& message : input.messages()) {
    if (!message.has_role() || !message.has_content()) {
      return InvalidField("messages", absl::StrCat("message ", messages.size(), " has no ",
                                                   message.has_role() ? "content" : "role"));
    }
    messages.push_back({message.role(), message.content()});
  }
  ChatOptions options;
  if (input.has_add_generation_prompt()) {
    options.add_generation_prompt = input.add_generation_prompt();
  }
  absl::StatusOr<RenderedChat> chat = (*model.chat_template)->Render(messages, options);
  if (!chat.ok()) return ChatError(chat.status());
  return chat;
}

absl::StatusOr<std::vector<int32_t>> TokenizeChat(const RenderedChat& chat,
                                                  const RequestModel& model,
                                                  const std::atomic<bool>* cancelled) {
  absl::StatusOr<std::vector<int32_t>> ids = EncodeChat(*model.tokenizer, chat, cancelled);
  if (!ids.ok()) return ChatError(ids.status());
  return ids;
}

absl::StatusOr<GenerationRequest> TranslateGenerateRequest(const v1::GenerateRequest& message,
                                                           const RequestModel& model,
                                                           absl::Time deadline,
                                                           const std::atomic<bool>* cancelled) {
  GenerationRequest request;
  request.deadline = deadline;
  request.priority = message.priority();
  request.num_completions = CompletionsOf(message);
  US_ASSIGN_OR_RETURN(request.sampling, TranslateSampling(message, model));
  US_ASSIGN_OR_RETURN(request.prompt_logprobs,
                      TranslateLogprobs("prompt_logprobs", message.has_prompt_logprobs(),
                                        message.prompt_logprobs()));
  US_RETURN_IF_ERROR(TranslateStop(message, model, request));
  request.min_tokens = message.min_tokens();
  // Unset, max_tokens gives way. 0 has a meaning of its own in the engine.
  request.max_tokens = message.has_max_tokens() ? message.max_tokens()
                                                : std::max(kDefaultMaxTokens, request.min_tokens);
  if (request.max_tokens == 0) return InvalidField("max_tokens", "0 is less than 1");
  if (const int32_t limit = model.max_completion_tokens; limit > 0 && request.max_tokens > limit) {
    if (message.has_max_tokens() || request.min_tokens > limit) {
      return InvalidField(
          message.has_max_tokens() ? "max_tokens" : "min_tokens",
          absl::StrCat(message.has_max_tokens() ? request.max_tokens : request.min_tokens,
                       " is more than ", limit,
                       ", which the server generates at most "
                       "(--max-completion-tokens)"));
    }
    request.max_tokens = limit;
  }
  US_RETURN_IF_ERROR(ValidateOptions(request, model.vocab_size));

  US_ASSIGN_OR_RETURN(
      request.prompt_ids,
      TranslateInput(message, 1, MaxPromptTokens(model.max_context_tokens - 1, model), model,
                     cancelled));
  const int32_t tokens_left =
      model.max_context_tokens - static_cast<int32_t>(request.prompt_ids.size());
  request.max_tokens = std::min(request.max_tokens, tokens_left);
  request.min_tokens = std::min(request.min_tokens, request.max_tokens);
  return request;
}

absl::StatusOr<ScoreRequest> TranslateScoreRequest(const v1::ScoreRequest& message,
                                                   const RequestModel& model, absl::Time deadline,
                                                   const std::atomic<bool>* cancelled) {
  ScoreRequest request;
  request.deadline = deadline;
  request.top_logprobs = message.top_logprobs();
  US_RETURN_IF_ERROR(ValidateScoreOptions(request));
  US_ASSIGN_OR_RETURN(request.token_ids,
                      TranslateInput(message, 2, MaxPromptTokens(model.max_context_tokens, model),
                                     model, cancelled));
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
