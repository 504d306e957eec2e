// From the engine's events to the service's messages.
#ifndef ULTRASKETCH_SERVER_RESPONSE_TRANSLATION_H_
#define ULTRASKETCH_SERVER_RESPONSE_TRANSLATION_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/backends/sampling/sampling.h"
#include "engine/format/tokenizer/tokenizer.h"
#include "engine/serving/engine_loop/engine_loop.h"
#include "ultrasketch/v1/generation.pb.h"

namespace ultrasketch {

using TokenLogprobsField = google::protobuf::RepeatedPtrField<v1::TokenLogprobs>;

v1::FinishReason ToMessage(FinishReason reason);
v1::Timing ToMessage(const GenerationTiming& timing);

// Usage of one completion.
v1::Usage UsageOf(const GenerationResult& result);

// The log-probabilities of a text's tokens, behind a first one that has none.
void AppendLogprobsOfText(int32_t first_id, const std::vector<SampledToken>& logprobs,
                          const Tokenizer& tokenizer, TokenLogprobsField& field);

// The answers to one request: takes its events in order. Not thread-safe.
class GenerationTranslator {
 public:
  // The request is not kept.
  GenerationTranslator(const GenerationRequest& request,
                       std::shared_ptr<const Tokenizer> tokenizer);

  uint64_t seed() const { return seed_; }
  int64_t num_prompt_tokens() const { return num_prompt_tokens_; }

  // `Target` is a Completion or a GenerateDelta: appends the delta's text, ids and
  // log-probabilities. About as many bytes as the message has become longer by, and not more.
  template <typename Target>
  int64_t AppendDelta(const GenerationDelta& delta, Target& target) {
    target.mutable_text()->append(delta.text);
    target.mutable_token_ids()->Add(delta.token_ids.begin(), delta.token_ids.end());
    return static_cast<int64_t>(delta.text.size() + delta.token_ids.size()) +
           AppendLogprobs(delta, *target.mutable_logprobs());
  }

  void AppendPromptLogprobs(const GenerationResult& result, TokenLogprobsField& field) const;

  // The message that ends one completion of a stream.
  v1::GenerateFinal FinalOf(const GenerationResult& result) const;

 private:
  int64_t AppendLogprobs(const GenerationDelta& delta, TokenLogprobsField& field);

  const std::shared_ptr<const Tokenizer> tokenizer_;
  const uint64_t seed_;
  const int64_t num_prompt_tokens_;
  const int32_t first_prompt_id_;
  std::vector<TokenPieceStream> pieces_;  // of each completion; only with log-probabilities
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_RESPONSE_TRANSLATION_H_
