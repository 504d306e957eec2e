#include "engine/compress/fold_plan.h"

#include <algorithm>
#include <cmath>
#include <queue>

#include "absl/strings/str_format.h"

#include "engine/base/check.h"
#include "engine/codecs/fold/fold_linear.h"

namespace ultrasketch {
namespace {

// What the fit makes of `buckets` buckets.
FoldShape ShapeOf(const LinearSite& site, int64_t buckets, bool ranked) {
  const auto num_classes = static_cast<int>(EvenFoldClasses(site.cols, buckets).size());
  return {buckets, num_classes, ranked && num_classes > 1};
}

int64_t StoredBytes(const LinearSite& site, const FoldShape& shape) {
  return FoldStoredBytes(site.rows, site.cols, shape.buckets, shape.num_classes, shape.ranked);
}

// What one more bucket is worth to a site that has `bits` buckets for each column already. Below
// one the columns of a group make way for each other, above it every plane leaves a quarter of the
// error.
double Gain(double bits) { return std::pow(4.0, -std::max(0.0, bits - 1)) / bits; }

int64_t FewestBuckets(const LinearSite& site) {
  return std::min(site.cols,
                  ((site.cols + kMaxColumnsPerGroup - 1) / kMaxColumnsPerGroup + 7) / 8 * 8);
}

int64_t MostBuckets(const LinearSite& site) { return kMaxFoldPlanes * site.cols; }

}  // namespace

absl::StatusOr<std::vector<FoldShape>> PlanFold(absl::Span<const LinearSite> sites,
                                                absl::Span<const double> importance,
                                                double bits_per_weight, bool ranked) {
  US_CHECK(importance.size() == sites.size());
  int64_t num_weights = 0;
  int64_t used_bytes = 0;
  int64_t most_bytes = 0;
  std::vector<FoldShape> shapes;
  for (const LinearSite& site : sites) {
    num_weights += site.num_weights();
    shapes.push_back(ShapeOf(site, FewestBuckets(site), ranked));
    used_bytes += StoredBytes(site, shapes.back());
    most_bytes += StoredBytes(site, ShapeOf(site, MostBuckets(site), ranked));
  }
  const double bits_per_byte = 8.0 / static_cast<double>(num_weights);
  const double fewest_bits = static_cast<double>(used_bytes) * bits_per_byte;
  const double most_bits = static_cast<double>(most_bytes) * bits_per_byte;
  if (!(bits_per_weight >= fewest_bits && bits_per_weight <= most_bits)) {
    return absl::OutOfRangeError(absl::StrFormat(
        "bits per weight: expected %.3f to %.3f for codec fold and this model, found %g",
        fewest_bits, most_bits, bits_per_weight));
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
    const LinearSite& site = sites[index];
    const double bits = static_cast<double>(shapes[index].buckets) / static_cast<double>(site.cols);
    candidates.push({importance[index] * Gain(bits), index});
  };
  for (size_t index = 0; index < shapes.size(); ++index) push(index);
  while (!candidates.empty()) {
    const size_t index = candidates.top().index;
    candidates.pop();
    const LinearSite& site = sites[index];
    const FoldShape more =
        ShapeOf(site, std::min(shapes[index].buckets + 8, MostBuckets(site)), ranked);
    const int64_t more_bytes = StoredBytes(site, more) - StoredBytes(site, shapes[index]);
    if (more.buckets == shapes[index].buckets || used_bytes + more_bytes > budget_bytes) continue;
    used_bytes += more_bytes;
    shapes[index] = more;
    push(index);
  }
  return shapes;
}

}  // namespace ultrasketch
