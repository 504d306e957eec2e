// From the service's messages to the engine's requests.
#ifndef ULTRASKETCH_SERVER_REQUEST_TRANSLATION_H_
#define ULTRASKETCH_SERVER_REQUEST_TRANSLATION_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "engine/format/chat/chat_template.h"
#include "engine/format/model_config.h"
#include "engine/format/tokenizer/tokenizer.h"
#include "engine/serving/engine_loop/engine_loop.h"
#include "engine/serving/engine_loop/score.h"
#include "ultrasketch/v1/generation.pb.h"

namespace ultrasketch {

// A warning that is given once. Thread-safe.
class OneTimeWarning {
 public:
  explicit OneTimeWarning(std::function<void(const std::string&)> warn) : warn_(std::move(warn)) {}
  void Give(const std::string& message) {
    if (!given_.exchange(true)) warn_(message);
  }

 private:
  const std::function<void(const std::string&)> warn_;
  std::atomic<bool> given_ = false;
};

// What a model's requests are translated by.
struct RequestModel {
  // Most tokens of prompt and completion together: the model's context, or the KV cache if smaller.
  int32_t max_context_tokens = 0;
  int32_t vocab_size = 0;
  // Most tokens of a prompt, and of a completion, that the server takes; 0: what the context takes.
  int32_t max_prompt_tokens = 0;
  int32_t max_completion_tokens = 0;
  int32_t max_token_bytes = 0;  // of the longest token's text: bounds how long a prompt may be
  GenerationConfig generation_config;
  std::vector<int32_t> eos_token_ids;
  std::shared_ptr<const Tokenizer> tokenizer;
  // How a conversation becomes a prompt, or why none does.
  absl::StatusOr<std::shared_ptr<const ChatTemplate>> chat_template =
      absl::FailedPreconditionError("the model has no chat template");
  // Given at the first text that begins with the token that the template puts in front of it; may
  // be null.
  std::shared_ptr<OneTimeWarning> doubled_beginning;
};

// The bytes of the longest token's text, as spelled in the vocabulary.
int32_t LongestTokenBytes(const Tokenizer& tokenizer);

// How a text of a request becomes ids: `Message` has add_special_tokens and split_special_tokens.
template <typename Message>
EncodeOptions EncodeOptionsOf(const Message& message) {
  EncodeOptions options;
  options.add_special_tokens = !message.has_add_special_tokens() || message.add_special_tokens();
  options.parse_special_tokens = !message.split_special_tokens();
  return options;
}

// The most messages of a conversation.
inline constexpr int kMaxChatMessages = 4096;

// What the model's chat template makes of a conversation. INVALID_ARGUMENT, "messages: ...",
// whatever goes wrong: a model without a template, a message without role or content, a
// conversation that the template refuses or that takes it too long.
absl::StatusOr<RenderedChat> RenderChat(const v1::ChatInput& input, const RequestModel& model);

// EncodeChat of that, with errors as RenderChat's; CANCELLED soon after `*cancelled` turns true.
absl::StatusOr<std::vector<int32_t>> TokenizeChat(const RenderedChat& chat,
                                                  const RequestModel& model,
                                                  const std::atomic<bool>* cancelled);

// How many tokens the input of a request has: its ids, or about as many as its text will become.
template <typename Message>
int64_t EstimateTokens(const Message& message) {
  constexpr int64_t kBytesPerToken = 4;
  const auto num_bytes =
      static_cast<int64_t>(message.text().size() + message.messages().ByteSizeLong());
  return message.token_ids().ids_size() + num_bytes / kBytesPerToken;
}

// How many completions are asked for; may be out of range.
inline int32_t CompletionsOf(const v1::GenerateRequest& message) {
  return message.has_n() ? message.n() : 1;
}

// What is unset takes the value of the model's generation_config.json, or else the neutral one; an
// unset seed is drawn. max_tokens and min_tokens are cut to what the context leaves.
//
// INVALID_ARGUMENT, "<field>: ...", for everything that is wrong with the options or the prompt. A
// text or a conversation is tokenized last, and not at all when it is too long for the context
// whatever its tokens are. CANCELLED soon after `*cancelled`, which may be null, turns true.
absl::StatusOr<GenerationRequest> TranslateGenerateRequest(
    const v1::GenerateRequest& message, const RequestModel& model, absl::Time deadline,
    const std::atomic<bool>* cancelled = nullptr);

// The same for scoring.
absl::StatusOr<ScoreRequest> TranslateScoreRequest(const v1::ScoreRequest& message,
                                                   const RequestModel& model, absl::Time deadline,
                                                   const std::atomic<bool>* cancelled = nullptr);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_REQUEST_TRANSLATION_H_
