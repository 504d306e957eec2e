// From the engine's events to the service's messages.
#ifndef ULTRASKETCH_SERVER_RESPONSE_TRANSLATION_H_
#define ULTRASKETCH_SERVER_RESPONSE_TRANSLATION_H_

#include <cstdint>
#include <vector>

#include "engine/backends/sampling/sampling.h"
#include "engine/format/tokenizer/tokenizer.h"
#include "engine/serving/engine_loop/engine_loop.h"
#include "ultrasketch/v1/generation.pb.h"

namespace ultrasketch {

using TokenLogprobsField = google::protobuf::RepeatedPtrField<v1::TokenLogprobs>;

void AppendLogprobs(const std::vector<SampledToken>& tokens, const Tokenizer& tokenizer,
                    TokenLogprobsField& field);

v1::FinishReason ToMessage(FinishReason reason);
v1::Timing ToMessage(const GenerationTiming& timing);

// Usage of one completion.
v1::Usage UsageOf(const GenerationResult& result);

// `Target` is a Completion or a GenerateDelta: appends the delta's text, ids and log-probabilities.
template <typename Target>
void AppendDelta(const GenerationDelta& delta, const Tokenizer& tokenizer, Target& target) {
  target.mutable_text()->append(delta.text);
  target.mutable_token_ids()->Add(delta.token_ids.begin(), delta.token_ids.end());
  AppendLogprobs(delta.logprobs, tokenizer, *target.mutable_logprobs());
}

// The message that ends one completion of a stream.
v1::GenerateFinal FinalOf(const GenerationResult& result, uint64_t seed,
                          const Tokenizer& tokenizer);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_RESPONSE_TRANSLATION_H_
