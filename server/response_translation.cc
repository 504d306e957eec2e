#include "server/response_translation.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/time/time.h"

namespace ultrasketch {
namespace {

void FillLogprob(const TokenLogprob& token, std::string text, std::string bytes,
                 v1::TokenLogprob& message) {
  message.set_token_id(token.id);
  message.set_logprob(token.logprob);
  message.set_text(std::move(text));
  message.set_bytes(std::move(bytes));
}

// `pieces` stands behind the tokens before this one.
void FillLogprobs(const SampledToken& token, const Tokenizer& tokenizer, TokenPieceStream& pieces,
                  v1::TokenLogprobs& message) {
  TokenPiece piece = pieces.Add(token.id);
  FillLogprob({token.id, token.logprob}, std::move(piece.text), std::move(piece.bytes),
              *message.mutable_token());
  for (const TokenLogprob& top : token.top) {
    FillLogprob(top, tokenizer.TokenText(top.id), tokenizer.TokenBytes(top.id), *message.add_top());
  }
}

void FillDuration(absl::Duration duration, google::protobuf::Duration& message) {
  duration = std::max(duration, absl::ZeroDuration());
  message.set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &duration));
  message.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
}

}  // namespace

v1::FinishReason ToMessage(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case FinishReason::kError:
      return v1::FINISH_REASON_ERROR;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

v1::Timing ToMessage(const GenerationTiming& timing) {
  v1::Timing message;
  FillDuration(timing.queue, *message.mutable_queue());
  FillDuration(timing.prefill, *message.mutable_prefill());
  FillDuration(timing.decode, *message.mutable_decode());
  message.set_steps(timing.num_steps);
  message.set_mean_batch_size(static_cast<float>(timing.mean_batch_size));
  return message;
}

v1::Usage UsageOf(const GenerationResult& result) {
  v1::Usage usage;
  usage.set_prompt_tokens(result.num_prompt_tokens);
  usage.set_completion_tokens(result.num_completion_tokens);
  usage.set_total_tokens(result.num_prompt_tokens + result.num_completion_tokens);
  usage.set_cached_prompt_tokens(result.num_cached_prompt_tokens);
  return usage;
}

void AppendLogprobsOfText(int32_t first_id, const std::vector<SampledToken>& logprobs,
                          const Tokenizer& tokenizer, TokenLogprobsField& field) {
  TokenPieceStream pieces(tokenizer, /*skip_special_tokens=*/true);
  pieces.Add(first_id);
  for (const SampledToken& token : logprobs) FillLogprobs(token, tokenizer, pieces, *field.Add());
}

GenerationTranslator::GenerationTranslator(const GenerationRequest& request,
                                           std::shared_ptr<const Tokenizer> tokenizer)
    : tokenizer_(std::move(tokenizer)),
      seed_(request.sampling.seed),
      num_prompt_tokens_(static_cast<int64_t>(request.prompt_ids.size())),
      first_prompt_id_(request.prompt_ids.front()) {
  if (request.sampling.num_logprobs < 0) return;
  for (int32_t i = 0; i < request.num_completions; ++i) {
    pieces_.emplace_back(*tokenizer_, request.skip_special_tokens);
    pieces_.back().Prime(request.prompt_ids);
  }
}

int64_t GenerationTranslator::AppendLogprobs(const GenerationDelta& delta,
                                             TokenLogprobsField& field) {
  int64_t num_bytes = 0;
  for (const SampledToken& token : delta.logprobs) {
    v1::TokenLogprobs& message = *field.Add();
    FillLogprobs(token, *tokenizer_, pieces_[static_cast<size_t>(delta.completion)], message);
    num_bytes += static_cast<int64_t>(message.ByteSizeLong()) + 2;
  }
  return num_bytes;
}

void GenerationTranslator::AppendPromptLogprobs(const GenerationResult& result,
                                                TokenLogprobsField& field) const {
  AppendLogprobsOfText(first_prompt_id_, result.prompt_logprobs, *tokenizer_, field);
}

v1::GenerateFinal GenerationTranslator::FinalOf(const GenerationResult& result) const {
  v1::GenerateFinal message;
  message.set_index(result.completion);
  message.set_finish_reason(ToMessage(result.reason));
  if (!result.stop_string.empty()) message.set_stop_string(result.stop_string);
  *message.mutable_usage() = UsageOf(result);
  message.set_seed(seed_);
  *message.mutable_timing() = ToMessage(result.timing);
  AppendPromptLogprobs(result, *message.mutable_prompt_logprobs());
  return message;
}

}  // namespace ultrasketch
