// How the tokens of a step are shared among the sequences that run.
//
// Everybody gets one token, so that decoding never stops. Of the rest, three quarters go in order
// of service, and what is left to those that miss the fewest tokens first: a short prompt is
// through in its first step beside long ones that came before it, and long ones keep three quarters
// of their pace whatever short ones come. Nothing is left over while somebody could use it.
#ifndef ULTRASKETCH_ENGINE_SERVING_SCHEDULER_SHARE_STEP_H_
#define ULTRASKETCH_ENGINE_SERVING_SCHEDULER_SHARE_STEP_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace ultrasketch {

// What a running sequence could use of a step.
struct StepClaim {
  int64_t num_missing = 1;  // tokens, at least one
  int64_t num_before_logits =
      0;  // the first so many of them need no row of logits; the rest a row each
};

// Tokens for each of the claims, in order of service, at least one. There are at most `max_tokens`
// claims, and at most `max_rows`. O(n log n), but O(n) while nobody misses more than one token.
std::vector<int64_t> ShareStep(absl::Span<const StepClaim> claims, int64_t max_tokens,
                               int64_t max_rows);

// Whether a sequence that misses `num_missing` tokens would get more of the step than the one token
// that it gets in any case, or needs no more: else it had better wait.
//
// `num_claims` others run. Beyond their first tokens, they miss `others.all` together, those before
// it `others.before`, and those that miss no more tokens than it `others.shorter`.
struct OthersMissing {
  int64_t all = 0;
  int64_t before = 0;
  int64_t shorter = 0;
};
bool WouldGetShare(int64_t num_missing, int64_t num_claims, const OthersMissing& others,
                   int64_t max_tokens);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_SERVING_SCHEDULER_SHARE_STEP_H_
