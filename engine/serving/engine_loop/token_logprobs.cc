#include "engine/serving/engine_loop/token_logprobs.h"

#include <vector>

#include "engine/backends/sampling/logits_math.h"
#include "engine/base/check.h"
#include "engine/base/status.h"

namespace ultrasketch {

absl::StatusOr<SampledToken> LogprobsOfToken(absl::Span<const float> logits, int32_t id,
                                             int32_t num_top) {
  US_CHECK(id >= 0 && static_cast<size_t>(id) < logits.size() && num_top >= 0);
  US_ASSIGN_OR_RETURN(const float maximum, CheckedMaximum(logits));
  const double log_sum = LogSumExp(logits, maximum);
  SampledToken token;
  token.id = id;
  token.logprob = static_cast<float>(logits[static_cast<size_t>(id)] - log_sum);
  if (num_top > 0) {
    std::vector<Candidate> top;
    SelectMostLikely(logits, static_cast<size_t>(num_top), top);
    token.top.reserve(top.size());
    for (const Candidate& candidate : top) {
      token.top.push_back({candidate.id, static_cast<float>(candidate.logit - log_sum)});
    }
  }
  return token;
}

}  // namespace ultrasketch
