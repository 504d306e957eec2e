#include "server/response_translation.h"

#include <algorithm>

#include "absl/time/time.h"
#include "absl/types/span.h"

namespace ultrasketch {
namespace {

void FillLogprob(int32_t id, float logprob, const Tokenizer& tokenizer, v1::TokenLogprob& message) {
  message.set_token_id(id);
  message.set_logprob(logprob);
  message.set_text(tokenizer.Decode(absl::MakeConstSpan(&id, 1), /*skip_special_tokens=*/false));
}

void FillDuration(absl::Duration duration, google::protobuf::Duration& message) {
  duration = std::max(duration, absl::ZeroDuration());
  message.set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &duration));
  message.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
}

}  // namespace

void AppendLogprobs(const std::vector<SampledToken>& tokens, const Tokenizer& tokenizer,
                    TokenLogprobsField& field) {
  for (const SampledToken& token : tokens) {
    v1::TokenLogprobs& message = *field.Add();
    FillLogprob(token.id, token.logprob, tokenizer, *message.mutable_token());
    for (const TokenLogprob& top : token.top) {
      FillLogprob(top.id, top.logprob, tokenizer, *message.add_top());
    }
  }
}

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

v1::GenerateFinal FinalOf(const GenerationResult& result, uint64_t seed,
                          const Tokenizer& tokenizer) {
  v1::GenerateFinal message;
  message.set_index(result.completion);
  message.set_finish_reason(ToMessage(result.reason));
  if (!result.stop_string.empty()) message.set_stop_string(result.stop_string);
  *message.mutable_usage() = UsageOf(result);
  message.set_seed(seed);
  *message.mutable_timing() = ToMessage(result.timing);
  AppendLogprobs(result.prompt_logprobs, tokenizer, *message.mutable_prompt_logprobs());
  return message;
}

}  // namespace ultrasketch
