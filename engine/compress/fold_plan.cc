#include "engine/compress/fold_plan.h"

#include <algorithm>
#include <cmath>
#include <queue>

#include "absl/strings/str_format.h"

#include "engine/codecs/fold/fold_linear.h"

namespace ultrasketch {
namespace {

// The most classes that a site is split into: see ChooseFoldClasses.
constexpr int kPlannedClasses = 2;

int64_t StoredBytes(const LinearSite& site, int64_t buckets, bool ranked) {
  return FoldStoredBytes(site.rows, site.cols, buckets, kPlannedClasses, ranked);
}

// Buckets per column that a site deserves, relative to the others. From a search over the kinds of
// sites and the first and last layer for the least perplexity at half a bit per weight: the first
// layer's error passes through all others, the last layer makes up for the shortfall of all before
// it, and the layers between need their attention more than their gates.
double RelativeDensity(const LinearSite& site, int num_layers) {
  double density = 1;
  switch (site.kind) {
    case SiteKind::kAttentionInput:
      density = 1.17;
      break;
    case SiteKind::kAttentionOutput:
      density = 1.09;
      break;
    case SiteKind::kMlpInput:
      density = 0.37;
      break;
    case SiteKind::kMlpOutput:
      density = 0.69;
      break;
  }
  if (num_layers > 1 && site.layer == 0) density *= 9.3;
  if (num_layers > 1 && site.layer == num_layers - 1) density *= 5.75;
  return density;
}

int64_t FewestBuckets(const LinearSite& site) {
  return std::min(site.cols,
                  ((site.cols + kMaxColumnsPerBucket - 1) / kMaxColumnsPerBucket + 7) / 8 * 8);
}

}  // namespace

absl::StatusOr<std::vector<FoldShape>> PlanFold(absl::Span<const LinearSite> sites,
                                                double bits_per_weight, bool ranked) {
  int64_t num_weights = 0;
  int64_t used_bytes = 0;
  int64_t most_bytes = 0;
  std::vector<FoldShape> shapes;
  for (const LinearSite& site : sites) {
    num_weights += site.num_weights();
    shapes.push_back({FewestBuckets(site), kPlannedClasses, ranked});
    used_bytes += StoredBytes(site, shapes.back().buckets, ranked);
    most_bytes += StoredBytes(site, site.cols, ranked);
  }
  const double bits_per_byte = 8.0 / static_cast<double>(num_weights);
  const double fewest_bits = static_cast<double>(used_bytes) * bits_per_byte;
  const double most_bits = static_cast<double>(most_bytes) * bits_per_byte;
  if (!(bits_per_weight >= fewest_bits && bits_per_weight <= std::max(most_bits, 1.0))) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "bits per weight: expected %.3f to %.3f for codec fold and this model, found %g",
        fewest_bits, std::max(most_bits, 1.0), bits_per_weight));
  }

  // A byte more for every row of the site that is furthest behind what it deserves, until none fits
  // any more. No site has more buckets than columns.
  const auto budget_bytes = static_cast<int64_t>(
      std::floor(std::min(bits_per_weight / bits_per_byte, static_cast<double>(most_bytes))));
  struct Candidate {
    double share;
    size_t index;
    bool operator<(const Candidate& other) const {
      return share != other.share ? share > other.share : index > other.index;
    }
  };
  int num_layers = 0;
  for (const LinearSite& site : sites) num_layers = std::max(num_layers, site.layer + 1);
  std::priority_queue<Candidate> candidates;
  const auto push = [&](size_t index) {
    const LinearSite& site = sites[index];
    const double share =
        static_cast<double>(shapes[index].buckets) / static_cast<double>(site.cols);
    candidates.push({share / RelativeDensity(site, num_layers), index});
  };
  for (size_t index = 0; index < shapes.size(); ++index) push(index);
  while (!candidates.empty()) {
    const size_t index = candidates.top().index;
    candidates.pop();
    const int64_t buckets = std::min(shapes[index].buckets + 8, sites[index].cols);
    const int64_t more_bytes = StoredBytes(sites[index], buckets, ranked) -
                               StoredBytes(sites[index], shapes[index].buckets, ranked);
    if (buckets == shapes[index].buckets || used_bytes + more_bytes > budget_bytes) continue;
    used_bytes += more_bytes;
    shapes[index].buckets = buckets;
    push(index);
  }
  return shapes;
}

}  // namespace ultrasketch
