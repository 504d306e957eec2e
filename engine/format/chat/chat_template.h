// The chat template of a Hugging Face checkpoint: a conversation to the prompt that the model was
// trained on.
//
// A template is a Jinja program of the model's. It is run here as transformers 5.24 does in
// apply_chat_template (jinja2 3.1 with trim_blocks, lstrip_blocks, loop controls, the "generation"
// block), by an interpreter of the part of Jinja that chat templates use: to the byte where it
// renders, and an error where it cannot. docs/chat.md says what is supported.
#ifndef ULTRASKETCH_ENGINE_FORMAT_CHAT_CHAT_TEMPLATE_H_
#define ULTRASKETCH_ENGINE_FORMAT_CHAT_CHAT_TEMPLATE_H_

#include <atomic>
#include <cstdint>
#include <ctime>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/format/tokenizer/tokenizer.h"

namespace ultrasketch {

struct ChatMessage {
  std::string role;  // which there are, the template decides: usually "system", "user", "assistant"
  std::string content;
};

struct ChatOptions {
  // Ends the prompt with the beginning of an answer, where the template can.
  bool add_generation_prompt = true;
  // What strftime_now formats; the local time when it is not set.
  std::optional<std::tm> now = std::nullopt;
};

struct RenderedChat {
  std::string text;
  // What of `text` comes from the messages.
  std::vector<ByteRange> plain_ranges;
};

// Immutable; every method is safe to call from several threads.
class ChatTemplate {
 public:
  // The template and the special tokens of the checkpoint in `folder`. As in transformers, the
  // template is chat_template.jinja; else the member "chat_template" of tokenizer_config.json,
  // where it is a string, or named templates, of which "default" is taken. The special
  // tokens are those of tokenizer_config.json, and of special_tokens_map.json unless the former has
  // "added_tokens_decoder". Null when the model has no template. UNIMPLEMENTED, naming file, line
  // and column, for a template that uses what is not supported, INVALID_ARGUMENT for a syntax
  // error, DATA_LOSS for damaged files.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Load(const std::string& folder);

  // The same from a template at hand; `name` stands for the file in messages. `special_tokens` are
  // variables: "bos_token" -> "<s>".
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(
      std::string_view source, std::string_view name,
      std::map<std::string, std::string> special_tokens);

  ~ChatTemplate();

  // INVALID_ARGUMENT when there are no messages, a message is not UTF-8, or the template refuses
  // them (its own words are in the message); UNIMPLEMENTED when it gets to what is not supported;
  // RESOURCE_EXHAUSTED when it takes too long or too much memory. Every error of the template names
  // file, line and column.
  absl::StatusOr<RenderedChat> Render(absl::Span<const ChatMessage> messages,
                                      const ChatOptions& options = {}) const;

 private:
  struct Program;
  explicit ChatTemplate(std::unique_ptr<const Program> program);
  std::unique_ptr<const Program> program_;
};

// The tokens of a prompt. Special tokens are those that the template wrote: their spellings in the
// messages are plain text. Nothing is added to what the template wrote. `cancelled` and errors as
// for Tokenizer::Encode.
absl::StatusOr<std::vector<int32_t>> EncodeChat(const Tokenizer& tokenizer,
                                                const RenderedChat& chat,
                                                const std::atomic<bool>* cancelled = nullptr);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_CHAT_CHAT_TEMPLATE_H_
