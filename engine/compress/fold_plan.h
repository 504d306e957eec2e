// How many buckets each linear site gets from a budget of bits.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_FOLD_PLAN_H_
#define ULTRASKETCH_ENGINE_COMPRESS_FOLD_PLAN_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/codecs/linear_site.h"

namespace ultrasketch {

// The shape of a site's sketch: fixed before anything is fitted.
struct FoldShape {
  int64_t buckets = 0;
  // Classes of columns, by importance where there is more than one and `ranked`.
  int num_classes = 1;
  bool ranked = false;
};

// Buckets for `sites` so that all their stored bytes together, side data and padding included, are
// at most `bits_per_weight` bits for each of their weights, and as close to it as whole bytes of
// buckets allow. They go to the sites of most importance for each weight (site_importance.h), with
// diminishing returns. `ranked` reserves room for the columns' classes.
//
// OUT_OF_RANGE naming the possible range when the target is below what the smallest sketch
// takes, or above what the largest does.
absl::StatusOr<std::vector<FoldShape>> PlanFold(absl::Span<const LinearSite> sites,
                                                absl::Span<const double> importance,
                                                double bits_per_weight, bool ranked);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_FOLD_PLAN_H_
