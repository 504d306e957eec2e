#include "engine/serving/engine_loop/completion.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"

namespace ultrasketch {
namespace {

bool HasPenalty(const SamplingParams& params) {
  return params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
         params.frequency_penalty != 0.0f;
}

// How many bytes at the end of `text`, what a token has added, are the token itself. The rest is
// text of tokens before it that has become certain.
size_t NumOwnBytes(std::string_view text, int32_t id, const Tokenizer& tokenizer) {
  const std::string spelling = tokenizer.IdToToken(id).value_or("");
  return text.ends_with(spelling) ? spelling.size() : text.size();
}

}  // namespace

Completion::Completion(const GenerationRequest& request, const Tokenizer& tokenizer, int32_t index,
                       int64_t context_tokens)
    : request_(request),
      tokenizer_(tokenizer),
      index_(index),
      max_tokens_(std::min<int64_t>(
          request.max_tokens, context_tokens - static_cast<int64_t>(request.prompt_ids.size()))),
      end_ids_(request.eos_token_ids),
      detokenizer_(tokenizer, request.skip_special_tokens),
      stop_matcher_(request.stop, request.include_stop_in_output) {
  end_ids_.insert(end_ids_.end(), request.stop_token_ids.begin(), request.stop_token_ids.end());
  std::sort(end_ids_.begin(), end_ids_.end());
  end_ids_.erase(std::unique(end_ids_.begin(), end_ids_.end()), end_ids_.end());
  if (request.max_tokens == 0) return;

  detokenizer_.Prime(request.prompt_ids);
  if (!request.stop.empty()) {
    speller_.emplace(tokenizer, /*skip_special_tokens=*/false);
    speller_->Prime(request.prompt_ids);
  }
  if (HasPenalty(request.sampling)) {
    counts_.emplace();
    for (const int32_t id : request.prompt_ids) ++counts_->prompt[id];
  }
}

SampleRequest Completion::NextSample(int64_t logits_row) const {
  SampleRequest sample;
  sample.logits_row = logits_row;
  sample.params = &request_.sampling;
  sample.counts = counts_.has_value() ? &*counts_ : nullptr;
  if (num_tokens_ < request_.min_tokens) sample.forbidden_ids = end_ids_;
  sample.stream = static_cast<uint64_t>(index_);
  sample.index = static_cast<uint64_t>(num_tokens_);
  return sample;
}

std::optional<Completion::Ending> Completion::Accept(SampledToken token, GenerationDelta& delta) {
  US_CHECK(num_tokens_ < max_tokens_);
  const int32_t id = token.id;
  delta.completion = index_;
  delta.token_ids.push_back(id);
  if (request_.sampling.num_logprobs >= 0) delta.logprobs.push_back(std::move(token));
  if (counts_.has_value()) ++counts_->output[id];

  const bool is_end_token = std::binary_search(end_ids_.begin(), end_ids_.end(), id);
  const bool is_kept = !is_end_token || request_.include_stop_in_output;
  const bool is_hidden = !is_kept || (request_.skip_special_tokens && tokenizer_.IsSpecial(id));
  const std::string shown = is_kept ? detokenizer_.Add(id) : "";
  const std::string spelled = speller_.has_value() ? speller_->Add(id) : "";
  delta.text += Show(shown, spelled, is_hidden ? NumOwnBytes(spelled, id, tokenizer_) : 0);
  ++num_tokens_;

  if (!stop_matcher_.matched() && !is_end_token && num_tokens_ < max_tokens_) return std::nullopt;
  std::string rest = detokenizer_.Finish();
  if (!stop_matcher_.matched()) {
    delta.text += Show(rest, speller_.has_value() ? speller_->Finish() : "", 0);
    rest.clear();
  }
  delta.text += stop_matcher_.Finish(rest);
  if (stop_matcher_.matched()) {
    return Ending{FinishReason::kStop,
                  request_.stop[static_cast<size_t>(stop_matcher_.matched_index())]};
  }
  return Ending{is_end_token ? FinishReason::kStop : FinishReason::kLength, ""};
}

std::string Completion::Show(std::string_view shown, std::string_view spelled, size_t num_hidden) {
  return num_tokens_ < request_.min_tokens ? stop_matcher_.AddUnmatched(shown)
                                           : stop_matcher_.Add(shown, spelled, num_hidden);
}

}  // namespace ultrasketch
