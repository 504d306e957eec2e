#include <algorithm>
#include <utility>

#include "engine/format/tokenizer/tokenizer.h"
#include "engine/format/tokenizer/tokenizer_impl.h"

namespace ultrasketch {

struct DetokenizerStream::State {
  const Tokenizer::Impl* tokenizer;
  bool skip_special_tokens;
  tokenizer_internal::DecoderPipeline decoder;
  // What the decoder held back of the context, as it would have rendered it, from `context_begin`
  // on: when the text to come begins with this, it is not returned.
  std::string context_tail = {};
  size_t context_begin = 0;

  void Add(int32_t id, std::string* text) {
    const auto token = tokenizer->DecodedToken(id, skip_special_tokens);
    if (token.has_value()) decoder.Add(*token, text);
  }

  // `text` without what it repeats of the context.
  std::string WithoutContext(std::string text) {
    if (context_begin == context_tail.size()) return text;
    const auto [tail_end, text_end] = std::mismatch(context_tail.begin() + context_begin,
                                                    context_tail.end(), text.begin(), text.end());
    size_t num_common = text_end - text.begin();
    if (num_common == text.size()) {
      context_begin += num_common;
      return std::string();
    }
    context_begin = context_tail.size();
    while (num_common > 0 && (static_cast<uint8_t>(text[num_common]) & 0xc0) == 0x80) --num_common;
    return text.substr(num_common);
  }
};

DetokenizerStream::DetokenizerStream(const Tokenizer& tokenizer, bool skip_special_tokens)
    : state_(new State{tokenizer.impl_.get(), skip_special_tokens, tokenizer.impl_->decoder}) {}
DetokenizerStream::~DetokenizerStream() = default;
DetokenizerStream::DetokenizerStream(DetokenizerStream&&) noexcept = default;
DetokenizerStream& DetokenizerStream::operator=(DetokenizerStream&&) noexcept = default;

void DetokenizerStream::Prime(absl::Span<const int32_t> prompt) {
  std::string text;
  for (const int32_t id : prompt) {
    state_->Add(id, &text);
    text.clear();
  }
  tokenizer_internal::DecoderPipeline finished = state_->decoder;
  finished.Finish(&text);
  state_->context_tail = std::move(text);
  state_->context_begin = 0;
}

std::string DetokenizerStream::Add(int32_t id) {
  std::string text;
  state_->Add(id, &text);
  return state_->WithoutContext(std::move(text));
}

std::string DetokenizerStream::Finish() {
  std::string text;
  state_->decoder.Finish(&text);
  return state_->WithoutContext(std::move(text));
}

}  // namespace ultrasketch
