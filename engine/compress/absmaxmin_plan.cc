#include "engine/compress/absmaxmin_plan.h"

#include <algorithm>
#include <cmath>
#include <queue>
#include <utility>

#include "absl/strings/str_format.h"

#include "engine/base/check.h"
#include "engine/codecs/absmaxmin/absmaxmin_linear.h"

namespace ultrasketch {
namespace {

int64_t FewestBuckets(int64_t num_columns) {
  return (num_columns + kMaxColumnsPerBucket - 1) / kMaxColumnsPerBucket;
}

// What one more bit for each row is worth to a site that has `bits` for each column already. Below
// one the columns make way for each other, above it every bit leaves a quarter of the error.
double Gain(double bits) { return std::pow(4.0, -std::max(0.0, bits - 1)) / bits; }

int64_t StoredBytes(const LinearSite& site, int64_t row_bits, const AbsMaxMinStyle& style) {
  const auto classes = ChooseAbsMaxMinClasses(site.cols, row_bits, style);
  return AbsMaxMinStoredBytes(site.rows, site.cols, classes, classes.size() > 1);
}

}  // namespace

int64_t BucketBitsFor(double bits_per_weight) {
  return std::clamp(static_cast<int64_t>(std::ceil(bits_per_weight)), kMinBucketBits,
                    kMaxBucketBits);
}

int64_t FewestAbsMaxMinRowBits(int64_t cols, const AbsMaxMinStyle& style) {
  const int64_t shared = FewestBuckets(cols) * style.hash_rows * style.bits;
  const int64_t own = cols * style.bits;
  return ((style.own_share > 0 ? std::min(shared, own) : shared) + 7) / 8 * 8;
}

int64_t MostAbsMaxMinRowBits(int64_t cols, const AbsMaxMinStyle& style) {
  return (cols * style.bits * (style.own_share > 0 ? 1 : style.hash_rows) + 7) / 8 * 8;
}

std::vector<AbsMaxMinClass> ChooseAbsMaxMinClasses(int64_t cols, int64_t row_bits,
                                                   const AbsMaxMinStyle& style) {
  US_CHECK(row_bits >= FewestAbsMaxMinRowBits(cols, style) &&
           row_bits <= MostAbsMaxMinRowBits(cols, style));
  const int64_t bits_per_shared = style.hash_rows * style.bits;
  const double wanted_own = style.own_share * static_cast<double>(row_bits);
  AbsMaxMinClass own = {0, 0, 1, style.bits, 0};
  AbsMaxMinClass shared = {0, 0, style.hash_rows, style.bits, 0};
  // As few bytes unused as can be, then as near to the share of own buckets.
  std::pair<int64_t, double> least = {row_bits + 1, 0.0};
  const int64_t most_own = style.own_share > 0 ? std::min(cols, row_bits / style.bits) : 0;
  for (int64_t num_own = 0; num_own <= most_own; ++num_own) {
    const int64_t num_shared = cols - num_own;
    const int64_t own_bits = num_own * style.bits;
    const int64_t buckets = std::min(num_shared, (row_bits - own_bits) / bits_per_shared);
    if (num_shared > 0 && buckets < FewestBuckets(num_shared)) continue;
    const int64_t unused_bytes = (row_bits - own_bits - buckets * bits_per_shared) / 8;
    const std::pair<int64_t, double> cost = {unused_bytes,
                                             std::abs(static_cast<double>(own_bits) - wanted_own)};
    if (cost >= least) continue;
    least = cost;
    own.num_columns = own.buckets = num_own;
    shared.num_columns = num_shared;
    shared.buckets = buckets;
  }
  std::vector<AbsMaxMinClass> classes;
  if (own.num_columns > 0) classes.push_back(own);
  if (shared.num_columns > 0) classes.push_back(shared);
  US_CHECK(ValidateAbsMaxMinClasses(cols, classes).ok());
  return classes;
}

absl::StatusOr<std::vector<std::vector<AbsMaxMinClass>>> PlanAbsMaxMin(
    absl::Span<const LinearSite> sites, absl::Span<const double> importance, double bits_per_weight,
    const AbsMaxMinStyle& style) {
  US_CHECK(importance.size() == sites.size());
  int64_t num_weights = 0;
  int64_t used_bytes = 0;
  int64_t most_bytes = 0;
  std::vector<int64_t> row_bits;
  for (const LinearSite& site : sites) {
    num_weights += site.num_weights();
    row_bits.push_back(FewestAbsMaxMinRowBits(site.cols, style));
    used_bytes += StoredBytes(site, row_bits.back(), style);
    most_bytes += StoredBytes(site, MostAbsMaxMinRowBits(site.cols, style), style);
  }
  const double bits_per_byte = 8.0 / static_cast<double>(num_weights);
  const double fewest_bits = static_cast<double>(used_bytes) * bits_per_byte;
  const double most_bits = static_cast<double>(std::max(used_bytes, most_bytes)) * bits_per_byte;
  if (!(bits_per_weight >= fewest_bits && bits_per_weight <= most_bits)) {
    return absl::OutOfRangeError(absl::StrFormat(
        "bits per weight: expected %.3f to %.3f for codec absmaxmin with %d hash rows, %d bits a "
        "bucket, and this model, found %g",
        fewest_bits, most_bits, style.hash_rows, style.bits, bits_per_weight));
  }

  // A byte more for every row of the site that gains most by it, until none fits any more.
  const auto budget_bytes = static_cast<int64_t>(std::floor(bits_per_weight / bits_per_byte));
  struct Candidate {
    double gain;
    size_t index;
    bool operator<(const Candidate& other) const {
      return gain != other.gain ? gain < other.gain : index > other.index;
    }
  };
  std::priority_queue<Candidate> candidates;
  const auto push = [&](size_t index) {
    const double bits =
        static_cast<double>(row_bits[index]) / static_cast<double>(sites[index].cols);
    candidates.push({importance[index] * Gain(bits), index});
  };
  for (size_t index = 0; index < sites.size(); ++index) push(index);
  while (!candidates.empty()) {
    const size_t index = candidates.top().index;
    candidates.pop();
    const LinearSite& site = sites[index];
    const int64_t more_bits = row_bits[index] + 8;
    if (more_bits > MostAbsMaxMinRowBits(site.cols, style)) continue;
    const int64_t more_bytes =
        StoredBytes(site, more_bits, style) - StoredBytes(site, row_bits[index], style);
    if (used_bytes + more_bytes > budget_bytes) continue;
    used_bytes += more_bytes;
    row_bits[index] = more_bits;
    push(index);
  }
  std::vector<std::vector<AbsMaxMinClass>> classes;
  for (size_t index = 0; index < sites.size(); ++index) {
    classes.push_back(ChooseAbsMaxMinClasses(sites[index].cols, row_bits[index], style));
  }
  return classes;
}

}  // namespace ultrasketch
