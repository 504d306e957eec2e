// From logits to the next token: parameters, and the reference implementation on the CPU.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_SAMPLING_SAMPLING_H_
#define ULTRASKETCH_ENGINE_BACKENDS_SAMPLING_SAMPLING_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace ultrasketch {

// The defaults change nothing: plain sampling from the model's distribution.
struct SamplingParams {
  float temperature = 1.0f;  // 0: the most likely token (greedy); ties go to the lowest id
  int32_t top_k = 0;         // keep the k most likely; 0: all
  float top_p = 1.0f;        // keep the smallest set of most likely tokens with this much mass; 0:
                             // the most likely token alone
  float min_p = 0.0f;        // drop tokens less likely than min_p times the most likely one
  float repetition_penalty = 1.0f;  // above 0; divides positive logits of tokens seen, multiplies
                                    // negative
  float presence_penalty = 0.0f;    // subtracted once from logits of tokens generated before
  float frequency_penalty = 0.0f;   // subtracted once per earlier generation of the token
  std::vector<std::pair<int32_t, float>> logit_bias;  // added to the logits, unique ids
  uint64_t seed = 0;
  int32_t num_logprobs = -1;  // -1: none; 0: the chosen token's; n: also the n most likely tokens'
};

// Whether these options leave the most likely token alone, the one of the lowest id among equals,
// so that the seed makes no difference: temperature or top_p is 0.
inline bool IsGreedy(const SamplingParams& params) {
  return params.temperature == 0 || params.top_p == 0;
}

// INVALID_ARGUMENT naming the field when a value is out of range or not finite, or an id is outside
// [0, vocab_size).
absl::Status ValidateSamplingParams(const SamplingParams& params, int32_t vocab_size);

// How often each token occurred in a sequence so far. Needed only when a penalty is on.
struct TokenCounts {
  absl::flat_hash_map<int32_t, int32_t> prompt;
  absl::flat_hash_map<int32_t, int32_t> output;
};

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
};

struct SampledToken {
  int32_t id = 0;
  // Natural log of the model's own probability (softmax of the raw logits, before any option).
  float logprob = 0;              // only when num_logprobs >= 0
  std::vector<TokenLogprob> top;  // most likely first, num_logprobs of them
};

// One draw.
struct SampleRequest {
  int64_t logits_row = 0;  // which row of the step's logits
  const SamplingParams* params = nullptr;
  const TokenCounts* counts = nullptr;      // may be null when no penalty is on
  absl::Span<const int32_t> forbidden_ids;  // never chosen (end tokens before min_tokens, say)
  uint64_t stream = 0;                      // choice of a request: which of its n completions
  uint64_t index = 0;  // number of tokens generated before: the draw is a function of
                       // (seed, stream, index), the parameters and the logits alone
};

// Draws from `logits` [vocab_size]. `logits_row` is not used. INTERNAL when a logit is NaN or +inf,
// or all are -inf; INVALID_ARGUMENT, naming the field of the proto's GenerateRequest, when only the
// request's forbidden tokens leave none to choose.
absl::StatusOr<SampledToken> SampleToken(absl::Span<const float> logits,
                                         const SampleRequest& request);

// Log-softmax of one entry, accumulated in double. NaN when a logit is NaN or +inf, or all are
// -inf.
double LogProbability(absl::Span<const float> logits, int32_t id);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BACKENDS_SAMPLING_SAMPLING_H_
