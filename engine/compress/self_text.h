// What a dense model writes itself: the text to distil it with. A student that is asked about its
// teacher's own conversations learns what the teacher knows, where given text teaches the text.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_SELF_TEXT_H_
#define ULTRASKETCH_ENGINE_COMPRESS_SELF_TEXT_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/format/chat/chat_template.h"
#include "engine/format/tokenizer/tokenizer.h"
#include "engine/models/model.h"

namespace ultrasketch {

// What a chat template puts around the messages of a conversation, as tokens.
struct ConversationTokens {
  std::vector<int32_t> beginning;   // before the first user's message
  std::vector<int32_t> user_end;    // from a user's message to its answer
  std::vector<int32_t> answer_end;  // from an answer to the next user's message
};

// FAILED_PRECONDITION when the template does not keep a user's message, its answer and the next
// message apart, one after the other; otherwise what rendering and encoding report.
absl::StatusOr<ConversationTokens> FindConversationTokens(const ChatTemplate& chat_template,
                                                          const Tokenizer& tokenizer);

struct SelfTextOptions {
  int64_t num_windows = 0;
  int64_t window_tokens = 512;

  // Set for a chat model: windows are conversations, each from its beginning, in which the model
  // writes the user's messages as well as the answers. What the template writes is put there.
  std::optional<ConversationTokens> conversation;
  // The share of windows that begin with the model's beginning token alone all the same.
  double free_share = 0.25;

  std::vector<int32_t> eos_token_ids;

  // Each window has one of these temperatures, drawn for it.
  std::vector<float> temperatures = {0.7f, 0.85f, 1.0f};
  // SamplingParams::min_p: of a small model, unlikely tokens lead astray.
  float min_p = 0.05f;
  uint64_t seed = 0;

  std::function<void(int64_t done, int64_t total)> progress;  // tokens; may be empty
  // When it becomes true, the writing ends soon with CANCELLED. May be null.
  const std::atomic<bool>* cancelled = nullptr;
};

// [num_windows, window_tokens]: a function of the model and the options alone. A window that is not
// a conversation begins with the beginning-of-text token, or an end token where there is none, or
// else a random one.
//
// As many windows at once as `model.options()` and its cache allow. INVALID_ARGUMENT for options
// out of range; RESOURCE_EXHAUSTED when one window does not fit the model's cache.
absl::StatusOr<std::vector<int32_t>> WriteSelfText(Model& model, const SelfTextOptions& options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_SELF_TEXT_H_
