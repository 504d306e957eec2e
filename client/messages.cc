#include "client/messages.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/base/strings.h"

namespace ultrasketch::client {
namespace {

// More completions than any server gives: a hostile index must not allocate at will.
constexpr int32_t kMaxCompletions = 4096;

FinishReason FromMessage(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return FinishReason::kStop;
    case v1::FINISH_REASON_LENGTH:
      return FinishReason::kLength;
    case v1::FINISH_REASON_CANCELLED:
      return FinishReason::kCancelled;
    case v1::FINISH_REASON_ERROR:
      return FinishReason::kError;
    default:
      return FinishReason::kUnspecified;
  }
}

absl::Duration FromMessage(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

TokenLogprob FromMessage(const v1::TokenLogprob& message) {
  return {message.token_id(), message.logprob(), message.text(), message.bytes()};
}

std::vector<TokenLogprobs> FromMessage(
    const google::protobuf::RepeatedPtrField<v1::TokenLogprobs>& messages) {
  std::vector<TokenLogprobs> result;
  for (const v1::TokenLogprobs& message : messages) {
    TokenLogprobs& entry = result.emplace_back();
    entry.token = FromMessage(message.token());
    for (const v1::TokenLogprob& top : message.top()) entry.top.push_back(FromMessage(top));
  }
  return result;
}

Usage FromMessage(const v1::Usage& message) {
  return {message.prompt_tokens(), message.completion_tokens(), message.total_tokens(),
          message.cached_prompt_tokens()};
}

Timing FromMessage(const v1::Timing& message) {
  return {FromMessage(message.queue()), FromMessage(message.prefill()),
          FromMessage(message.decode()), message.steps(), message.mean_batch_size()};
}

std::string_view StateName(v1::ModelState state) {
  switch (state) {
    case v1::MODEL_STATE_LOADING:
      return "loading";
    case v1::MODEL_STATE_READY:
      return "ready";
    case v1::MODEL_STATE_DRAINING:
      return "draining";
    case v1::MODEL_STATE_FAILED:
      return "failed";
    default:
      return "unspecified";
  }
}

void SetChat(const Chat& chat, v1::ChatInput& message) {
  for (const ChatMessage& entry : chat.messages) {
    v1::ChatMessage& target = *message.add_messages();
    target.set_role(entry.role);
    target.set_content(entry.content);
  }
  if (chat.add_generation_prompt) message.set_add_generation_prompt(*chat.add_generation_prompt);
}

// `Message` has the oneof `input`.
template <typename Message>
void SetInput(const Prompt& prompt, Message& message) {
  if (const auto* text = std::get_if<std::string>(&prompt)) {
    message.set_text(*text);
  } else if (const auto* chat = std::get_if<Chat>(&prompt)) {
    SetChat(*chat, *message.mutable_messages());
  } else {
    const auto& ids = std::get<std::vector<int32_t>>(prompt);
    message.mutable_token_ids()->mutable_ids()->Add(ids.begin(), ids.end());
  }
}

// How a text becomes tokens.
template <typename Request, typename Message>
void SetTokenizing(const Request& request, Message& message) {
  if (request.add_special_tokens) message.set_add_special_tokens(*request.add_special_tokens);
  if (request.split_special_tokens) message.set_split_special_tokens(*request.split_special_tokens);
}

// The offset of the first byte that is not part of well-formed UTF-8; the size when there is none.
size_t FirstInvalidUtf8(std::string_view text) {
  constexpr size_t kMaxCharacterBytes = 4;
  size_t end = 0;
  while (end < text.size()) {
    size_t length = 1;
    while (length <= kMaxCharacterBytes && !IsValidUtf8(text.substr(end, length))) ++length;
    if (length > kMaxCharacterBytes) break;
    end += length;
  }
  return end;
}

// CheckUtf8 of a message in another; `prefix` is its place there and a dot.
absl::Status CheckUtf8(const google::protobuf::Message& message, const std::string& prefix) {
  using google::protobuf::FieldDescriptor;
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const bool is_message = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    if (!is_message && field->type() != FieldDescriptor::TYPE_STRING) continue;
    const int count = field->is_repeated() ? reflection.FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      std::string place = prefix + field->name();
      if (field->is_repeated()) absl::StrAppend(&place, "[", i, "]");
      if (is_message) {
        US_RETURN_IF_ERROR(CheckUtf8(field->is_repeated()
                                         ? reflection.GetRepeatedMessage(message, field, i)
                                         : reflection.GetMessage(message, field),
                                     place + "."));
        continue;
      }
      std::string scratch;
      const std::string& text =
          field->is_repeated() ? reflection.GetRepeatedStringReference(message, field, i, &scratch)
                               : reflection.GetStringReference(message, field, &scratch);
      if (IsValidUtf8(text)) continue;
      return absl::InvalidArgumentError(
          absl::StrCat(place, " is not UTF-8 at byte ", FirstInvalidUtf8(text)));
    }
  }
  return absl::OkStatus();
}

Completion* CompletionAt(int32_t index, GenerateResponse* response) {
  if (index < 0 || index >= kMaxCompletions) return nullptr;
  if (static_cast<size_t>(index) >= response->completions.size()) {
    response->completions.resize(static_cast<size_t>(index) + 1);
  }
  return &response->completions[static_cast<size_t>(index)];
}

}  // namespace

absl::Status CheckUtf8(const google::protobuf::Message& message) { return CheckUtf8(message, ""); }

std::string_view FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kUnspecified:
      return "unspecified";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
  }
  return "unspecified";
}

v1::GenerateRequest ToMessage(const GenerateRequest& request) {
  v1::GenerateRequest message;
  if (!request.model.empty()) message.set_model(request.model);
  SetInput(request.prompt, message);
  if (request.max_tokens) message.set_max_tokens(*request.max_tokens);
  if (request.min_tokens) message.set_min_tokens(*request.min_tokens);
  if (request.temperature) message.set_temperature(*request.temperature);
  if (request.top_p) message.set_top_p(*request.top_p);
  if (request.top_k) message.set_top_k(*request.top_k);
  if (request.min_p) message.set_min_p(*request.min_p);
  if (request.repetition_penalty) message.set_repetition_penalty(*request.repetition_penalty);
  if (request.presence_penalty) message.set_presence_penalty(*request.presence_penalty);
  if (request.frequency_penalty) message.set_frequency_penalty(*request.frequency_penalty);
  for (const std::string& stop : request.stop) message.add_stop(stop);
  for (const int32_t id : request.stop_token_ids) message.add_stop_token_ids(id);
  if (request.ignore_eos) message.set_ignore_eos(*request.ignore_eos);
  if (request.include_stop_in_output) {
    message.set_include_stop_in_output(*request.include_stop_in_output);
  }
  if (request.skip_special_tokens) message.set_skip_special_tokens(*request.skip_special_tokens);
  if (request.seed) message.set_seed(*request.seed);
  if (request.num_completions) message.set_n(*request.num_completions);
  if (request.logprobs) message.set_logprobs(*request.logprobs);
  if (request.prompt_logprobs) message.set_prompt_logprobs(*request.prompt_logprobs);
  for (const auto& [id, bias] : request.logit_bias) (*message.mutable_logit_bias())[id] = bias;
  if (request.priority) message.set_priority(*request.priority);
  SetTokenizing(request, message);
  return message;
}

v1::ScoreRequest ToMessage(const ScoreRequest& request) {
  v1::ScoreRequest message;
  if (!request.model.empty()) message.set_model(request.model);
  SetInput(request.text, message);
  if (request.top_logprobs) message.set_top_logprobs(*request.top_logprobs);
  SetTokenizing(request, message);
  return message;
}

v1::TokenizeRequest ToMessage(const TokenizeRequest& request) {
  v1::TokenizeRequest message;
  if (!request.model.empty()) message.set_model(request.model);
  if (request.chat) {
    SetChat(*request.chat, *message.mutable_messages());
  } else {
    message.set_text(request.text);
  }
  SetTokenizing(request, message);
  return message;
}

GenerateResponse FromMessage(const v1::GenerateResponse& message) {
  GenerateResponse response;
  response.model = message.model();
  for (const v1::Completion& entry : message.completions()) {
    Completion* completion = CompletionAt(entry.index(), &response);
    if (completion == nullptr) continue;
    completion->text = entry.text();
    completion->token_ids.assign(entry.token_ids().begin(), entry.token_ids().end());
    completion->finish_reason = FromMessage(entry.finish_reason());
    completion->stop_string = entry.stop_string();
    completion->logprobs = FromMessage(entry.logprobs());
  }
  response.usage = FromMessage(message.usage());
  response.seed = message.seed();
  response.timing = FromMessage(message.timing());
  response.prompt_logprobs = FromMessage(message.prompt_logprobs());
  return response;
}

GenerateDelta FromMessage(const v1::GenerateDelta& message) {
  GenerateDelta delta;
  delta.index = message.index();
  delta.text = message.text();
  delta.token_ids.assign(message.token_ids().begin(), message.token_ids().end());
  delta.logprobs = FromMessage(message.logprobs());
  return delta;
}

Score FromMessage(const v1::ScoreResponse& message) {
  Score score;
  score.token_ids.assign(message.token_ids().begin(), message.token_ids().end());
  score.logprobs = FromMessage(message.logprobs());
  score.sum_logprob = message.sum_logprob();
  score.perplexity = message.perplexity();
  return score;
}

ModelInfo FromMessage(const v1::Model& message) {
  ModelInfo info;
  info.name = message.name();
  info.state = StateName(message.state());
  info.error = message.error();
  info.architecture = message.architecture();
  info.codec = message.codec();
  info.device = message.device();
  info.num_parameters = message.num_parameters();
  info.bits_per_weight_linear = message.bits_per_weight_linear();
  info.bits_per_weight_file = message.bits_per_weight_file();
  info.max_context_tokens = message.max_context_tokens();
  info.chat = message.chat();
  info.vocab_size = message.vocab_size();
  info.kv_cache_type = message.kv_cache_type();
  info.weights_bytes = message.memory().weights_bytes();
  info.embedding_bytes = message.memory().embedding_bytes();
  info.kv_cache_bytes = message.memory().kv_cache_bytes();
  info.workspace_bytes = message.memory().workspace_bytes();
  info.weights_checksum = message.weights_checksum();
  if (message.has_evaluation()) {
    info.evaluation = {.perplexity = message.evaluation().perplexity(),
                       .dense_perplexity = message.evaluation().dense_perplexity(),
                       .num_tokens = message.evaluation().num_tokens(),
                       .context_tokens = message.evaluation().context_tokens()};
  }
  if (message.has_sketch_overhead()) {
    info.sketch_overhead = {message.sketch_overhead().prefill_ratio(),
                            message.sketch_overhead().decode_ratio()};
  }
  return info;
}

void AddDelta(const GenerateDelta& delta, GenerateResponse* response) {
  Completion* completion = CompletionAt(delta.index, response);
  if (completion == nullptr) return;
  completion->text += delta.text;
  completion->token_ids.insert(completion->token_ids.end(), delta.token_ids.begin(),
                               delta.token_ids.end());
  completion->logprobs.insert(completion->logprobs.end(), delta.logprobs.begin(),
                              delta.logprobs.end());
}

void AddFinal(const v1::GenerateFinal& message, GenerateResponse* response) {
  Completion* completion = CompletionAt(message.index(), response);
  if (completion == nullptr) return;
  completion->finish_reason = FromMessage(message.finish_reason());
  completion->stop_string = message.stop_string();

  // Every final message names the prompt; completion tokens are its own completion's.
  const Usage usage = FromMessage(message.usage());
  response->usage.prompt_tokens = usage.prompt_tokens;
  response->usage.cached_prompt_tokens = usage.cached_prompt_tokens;
  response->usage.completion_tokens += usage.completion_tokens;
  response->usage.total_tokens = usage.prompt_tokens + response->usage.completion_tokens;

  response->seed = message.seed();
  const Timing timing = FromMessage(message.timing());
  if (timing.decode >= response->timing.decode) response->timing = timing;
  if (message.prompt_logprobs_size() > 0) {
    response->prompt_logprobs = FromMessage(message.prompt_logprobs());
  }
}

}  // namespace ultrasketch::client
