#include "engine/compress/self_text.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"

#include "engine/base/random.h"
#include "engine/base/status.h"

namespace ultrasketch {
namespace {

// Streams of random numbers beside those of the sampling, which are the windows' own numbers.
constexpr uint64_t kTemperatureStream = std::numeric_limits<uint64_t>::max();
constexpr uint64_t kBeginningStream = kTemperatureStream - 1;

bool IsAmong(absl::Span<const int32_t> ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

// Who writes the tokens of a window, and what is put there without asking.
class WindowWriter {
 public:
  // `conversation` null: nothing is put there but `beginning`.
  WindowWriter(const ConversationTokens* conversation, int32_t beginning,
               absl::Span<const int32_t> eos_token_ids)
      : conversation_(conversation), eos_token_ids_(eos_token_ids) {
    tokens_ = conversation_ != nullptr && !conversation_->beginning.empty()
                  ? conversation_->beginning
                  : std::vector<int32_t>{beginning};
  }

  const std::vector<int32_t>& tokens() const { return tokens_; }

  // Tokens that may not come now: a message has at least one.
  absl::Span<const int32_t> forbidden() const {
    return conversation_ != nullptr && message_is_empty_ ? eos_token_ids_
                                                         : absl::Span<const int32_t>();
  }

  void Add(int32_t id) {
    if (conversation_ == nullptr || !IsAmong(eos_token_ids_, id)) {
      tokens_.push_back(id);
      message_is_empty_ = false;
      return;
    }
    const std::vector<int32_t>& between =
        user_writes_ ? conversation_->user_end : conversation_->answer_end;
    tokens_.insert(tokens_.end(), between.begin(), between.end());
    user_writes_ = !user_writes_;
    message_is_empty_ = true;
  }

 private:
  const ConversationTokens* conversation_;
  absl::Span<const int32_t> eos_token_ids_;
  std::vector<int32_t> tokens_;  // so far, and what is put there next
  bool user_writes_ = true;
  bool message_is_empty_ = true;
};

absl::Status CheckOptions(const Model& model, const SelfTextOptions& options) {
  if (options.num_windows < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("windows: expected at least 1, found ", options.num_windows));
  }
  const int64_t longest = model.config().max_position_embeddings;
  if (options.window_tokens < 2 || options.window_tokens > longest) {
    return absl::InvalidArgumentError(absl::StrCat("tokens in a window: expected 2 to ", longest,
                                                   " for this model, found ",
                                                   options.window_tokens));
  }
  if (!(options.free_share >= 0 && options.free_share <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("free share: expected 0 to 1, found ", options.free_share));
  }
  if (options.temperatures.empty()) return absl::InvalidArgumentError("there is no temperature");
  for (const float temperature : options.temperatures) {
    SamplingParams params;
    params.temperature = temperature;
    params.min_p = options.min_p;
    US_RETURN_IF_ERROR(ValidateSamplingParams(params, model.config().vocab_size));
  }
  return absl::OkStatus();
}

class SelfTextWriter {
 public:
  SelfTextWriter(Model& model, const SelfTextOptions& options) : model_(model), options_(options) {
    for (const float temperature : options.temperatures) {
      SamplingParams& params = params_.emplace_back();
      params.temperature = temperature;
      params.min_p = options.min_p;
      params.seed = options.seed;
    }
    ends_ = options.eos_token_ids;
    // A user's message ends with what the template puts behind it, which need not be what ends a
    // text.
    if (options.conversation.has_value()) {
      for (const auto* between :
           {&options.conversation->user_end, &options.conversation->answer_end}) {
        if (!between->empty() && !IsAmong(ends_, between->front())) {
          ends_.push_back(between->front());
        }
      }
    }
  }

  absl::StatusOr<std::vector<int32_t>> Write() {
    const KvCacheLayout& layout = model_.cache_layout();
    blocks_per_window_ = layout.BlocksForTokens(options_.window_tokens);
    const int64_t at_once =
        std::min({layout.num_blocks / blocks_per_window_, model_.options().max_step_tokens,
                  model_.options().max_step_logits});
    if (at_once < 1) {
      return absl::ResourceExhaustedError(
          absl::StrCat("a window of ", options_.window_tokens, " tokens takes ", blocks_per_window_,
                       " blocks of KV cache, the model has ", layout.num_blocks));
    }
    blocks_.resize(static_cast<size_t>(layout.num_blocks));
    std::iota(blocks_.begin(), blocks_.end(), 0);
    std::vector<int32_t> tokens;
    tokens.reserve(static_cast<size_t>(options_.num_windows * options_.window_tokens));
    for (int64_t first = 0; first < options_.num_windows; first += at_once) {
      US_RETURN_IF_ERROR(
          WriteWindows(first, std::min(at_once, options_.num_windows - first), tokens));
    }
    return tokens;
  }

 private:
  // Whether the window begins with the beginning token alone: every so many windows, evenly.
  bool IsFree(int64_t window) const {
    if (!options_.conversation.has_value()) return true;
    const double share = options_.free_share;
    return std::floor(share * static_cast<double>(window + 1)) >
           std::floor(share * static_cast<double>(window));
  }

  int32_t BeginningOf(int64_t window) const {
    const ModelConfig& config = model_.config();
    if (config.bos_token_id.has_value()) return *config.bos_token_id;
    if (!options_.eos_token_ids.empty()) return options_.eos_token_ids[0];
    return static_cast<int32_t>(
        RandomWord(options_.seed, kBeginningStream, static_cast<uint64_t>(window)) %
        static_cast<uint64_t>(config.vocab_size));
  }

  const SamplingParams& ParamsOf(int64_t window) const {
    return params_[RandomWord(options_.seed, kTemperatureStream, static_cast<uint64_t>(window)) %
                   params_.size()];
  }

  // All in step: each has as many tokens as the others at any time, so that every step is one token
  // of each.
  absl::Status WriteWindows(int64_t first, int64_t count, std::vector<int32_t>& out) {
    std::vector<WindowWriter> windows;
    for (int64_t window = first; window < first + count; ++window) {
      windows.emplace_back(IsFree(window) ? nullptr : &*options_.conversation, BeginningOf(window),
                           ends_);
    }
    std::vector<SequenceSlice> sequences;
    std::vector<SampleRequest> requests;
    std::vector<SampledToken> sampled;
    for (int64_t position = 0; position + 1 < options_.window_tokens; ++position) {
      if (options_.cancelled != nullptr && options_.cancelled->load(std::memory_order_relaxed)) {
        return absl::CancelledError("the text was not written to its end");
      }
      sequences.clear();
      requests.clear();
      for (int64_t index = 0; index < count; ++index) {
        const WindowWriter& window = windows[static_cast<size_t>(index)];
        sequences.push_back(
            {absl::MakeConstSpan(window.tokens()).subspan(static_cast<size_t>(position), 1),
             position,
             absl::MakeConstSpan(blocks_).subspan(static_cast<size_t>(index * blocks_per_window_),
                                                  static_cast<size_t>(blocks_per_window_)),
             1});
        if (static_cast<int64_t>(window.tokens().size()) > position + 1) continue;
        SampleRequest& request = requests.emplace_back();
        request.logits_row = index;
        request.params = &ParamsOf(first + index);
        request.forbidden_ids = window.forbidden();
        request.stream = static_cast<uint64_t>(first + index);
        request.index = static_cast<uint64_t>(position);
      }
      US_RETURN_IF_ERROR(model_.Forward(sequences));
      sampled.assign(requests.size(), SampledToken());
      if (!requests.empty()) {
        US_RETURN_IF_ERROR(model_.Sample(requests, absl::MakeSpan(sampled)));
      }
      for (size_t i = 0; i < requests.size(); ++i) {
        windows[static_cast<size_t>(requests[i].logits_row)].Add(sampled[i].id);
      }
      if (options_.progress) {
        options_.progress(first * options_.window_tokens + (position + 2) * count,
                          options_.num_windows * options_.window_tokens);
      }
    }
    for (const WindowWriter& window : windows) {
      out.insert(out.end(), window.tokens().begin(),
                 window.tokens().begin() + options_.window_tokens);
    }
    return absl::OkStatus();
  }

  Model& model_;
  const SelfTextOptions& options_;
  std::vector<SamplingParams> params_;  // of each temperature
  std::vector<int32_t> ends_;           // tokens that end a message
  int64_t blocks_per_window_ = 0;
  std::vector<BlockId> blocks_;
};

}  // namespace

absl::StatusOr<ConversationTokens> FindConversationTokens(const ChatTemplate& chat_template,
                                                          const Tokenizer& tokenizer) {
  const std::vector<ChatMessage> messages = {
      {"user", "Hello"}, {"assistant", "Hi"}, {"user", "Why"}};
  US_ASSIGN_OR_RETURN(const RenderedChat chat, chat_template.Render(messages));
  const std::string_view text = chat.text;
  // What comes from the messages is their roles as well, in many templates.
  std::vector<ByteRange> contents;
  for (const ByteRange& range : chat.plain_ranges) {
    if (contents.size() < messages.size() &&
        text.substr(range.begin, range.end - range.begin) == messages[contents.size()].content) {
      contents.push_back(range);
    }
  }
  if (contents.size() != messages.size()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the chat template writes ", contents.size(), " of the ", messages.size(),
                     " messages of a conversation, so its turns cannot be told apart"));
  }
  const auto encode = [&](size_t begin, size_t end) {
    return tokenizer.Encode(text.substr(begin, end - begin), {.add_special_tokens = false});
  };
  ConversationTokens tokens;
  US_ASSIGN_OR_RETURN(tokens.beginning, encode(0, contents[0].begin));
  US_ASSIGN_OR_RETURN(tokens.user_end, encode(contents[0].end, contents[1].begin));
  US_ASSIGN_OR_RETURN(tokens.answer_end, encode(contents[1].end, contents[2].begin));
  if (tokens.user_end.empty() || tokens.answer_end.empty()) {
    return absl::FailedPreconditionError(
        "the chat template puts nothing between messages, so its turns cannot be told apart");
  }
  return tokens;
}

absl::StatusOr<std::vector<int32_t>> WriteSelfText(Model& model, const SelfTextOptions& options) {
  US_RETURN_IF_ERROR(CheckOptions(model, options));
  return SelfTextWriter(model, options).Write();
}

}  // namespace ultrasketch
