#include "engine/serving/scheduler/share_step.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "engine/base/check.h"

namespace ultrasketch {
namespace {

// Of `num_spare` tokens, how many are kept for those that miss the fewest.
int64_t ShortShare(int64_t num_spare) { return num_spare / 4; }

int64_t RowsOf(const StepClaim& claim, int64_t num_tokens) {
  return std::max<int64_t>(0, num_tokens - claim.num_before_logits);
}

}  // namespace

std::vector<int64_t> ShareStep(absl::Span<const StepClaim> claims, int64_t max_tokens,
                               int64_t max_rows) {
  const auto num_claims = static_cast<int64_t>(claims.size());
  US_CHECK(num_claims <= std::min(max_tokens, max_rows));
  std::vector<int64_t> grants(claims.size(), 1);
  int64_t num_rows = max_rows;
  bool is_enough = true;
  for (const StepClaim& claim : claims) {
    num_rows -= RowsOf(claim, 1);
    is_enough = is_enough && claim.num_missing == 1;
  }
  if (is_enough) return grants;

  const auto extend = [&](size_t i, int64_t& num_tokens) {
    const StepClaim& claim = claims[i];
    const int64_t rows_before = RowsOf(claim, grants[i]);
    const int64_t most = claim.num_before_logits + rows_before + num_rows;
    const int64_t more = std::min({claim.num_missing - grants[i], num_tokens, most - grants[i]});
    grants[i] += more;
    num_tokens -= more;
    num_rows -= RowsOf(claim, grants[i]) - rows_before;
  };

  const int64_t num_spare = max_tokens - num_claims;
  int64_t num_in_order = num_spare - ShortShare(num_spare);
  for (size_t i = 0; i < claims.size(); ++i) extend(i, num_in_order);

  int64_t num_left = num_in_order + ShortShare(num_spare);
  std::vector<std::pair<int64_t, size_t>> unserved;  // tokens that it misses still, index
  for (size_t i = 0; i < claims.size(); ++i) {
    if (claims[i].num_missing > grants[i]) {
      unserved.emplace_back(claims[i].num_missing - grants[i], i);
    }
  }
  std::sort(unserved.begin(), unserved.end());
  for (const auto& [num_missing, i] : unserved) extend(i, num_left);
  return grants;
}

bool WouldGetShare(int64_t num_missing, int64_t num_claims, const OthersMissing& others,
                   int64_t max_tokens) {
  if (num_missing == 1 || others.before == 0) return true;
  const int64_t num_spare = max_tokens - num_claims - 1;
  const int64_t num_short = ShortShare(num_spare);
  const int64_t num_in_order = num_spare - num_short;
  return others.before < num_in_order ||
         std::min(others.shorter, others.all - num_in_order) < num_short;
}

}  // namespace ultrasketch
