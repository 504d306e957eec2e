#include "server/engine_loop/token_logprobs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"

#include "engine/base/check.h"

namespace ultrasketch {

absl::StatusOr<SampledToken> LogprobsOfToken(absl::Span<const float> logits, int32_t id,
                                             int32_t num_top) {
  US_CHECK(id >= 0 && static_cast<size_t>(id) < logits.size() && num_top >= 0);
  float largest = -std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == std::numeric_limits<float>::infinity()) {
      return absl::InternalError(absl::StrCat("the logit of token ", i, " is ", logits[i]));
    }
    largest = std::max(largest, logits[i]);
  }
  if (std::isinf(largest)) return absl::InternalError("all logits are -inf");
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  const double log_sum = largest + std::log(sum);

  SampledToken token;
  token.id = id;
  token.logprob = static_cast<float>(logits[static_cast<size_t>(id)] - log_sum);

  const size_t count = std::min<size_t>(static_cast<size_t>(num_top), logits.size());
  if (count > 0) {
    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count),
                      order.end(), [logits](int32_t a, int32_t b) {
                        const float logit_a = logits[static_cast<size_t>(a)];
                        const float logit_b = logits[static_cast<size_t>(b)];
                        return logit_a > logit_b || (logit_a == logit_b && a < b);
                      });
    token.top.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      const double logprob = logits[static_cast<size_t>(order[i])] - log_sum;
      token.top.push_back({order[i], static_cast<float>(logprob)});
    }
  }
  return token;
}

}  // namespace ultrasketch
