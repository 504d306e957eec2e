// How large a sketch each linear site gets from a budget of bits, for codec absmaxmin.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_ABSMAXMIN_PLAN_H_
#define ULTRASKETCH_ENGINE_COMPRESS_ABSMAXMIN_PLAN_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/codecs/absmaxmin/absmaxmin_layout.h"
#include "engine/codecs/linear_site.h"

namespace ultrasketch {

// What the sketches of all sites have in common. The columns of a site are in two classes: the more
// important ones have buckets of their own, the others share buckets.
struct AbsMaxMinStyle {
  int64_t hash_rows = 3;  // of the shared buckets
  int64_t bits = 2;       // of a bucket
  // Of a row's bits: those of the own buckets, as far as the others have the buckets that they need
  // at least. 0 spreads the bits evenly.
  double own_share = 1;
};

// Bits of a bucket that suit a target: few-bit buckets of many columns keep more than many-bit
// buckets of few.
int64_t BucketBitsFor(double bits_per_weight);

// The classes of a site's columns, the more important first, in at most `row_bits` bits a row,
// closely. `row_bits` is in the range below; so are the results valid.
std::vector<AbsMaxMinClass> ChooseAbsMaxMinClasses(int64_t cols, int64_t row_bits,
                                                   const AbsMaxMinStyle& style);
int64_t FewestAbsMaxMinRowBits(int64_t cols, const AbsMaxMinStyle& style);
int64_t MostAbsMaxMinRowBits(int64_t cols, const AbsMaxMinStyle& style);

// Classes for `sites` so that all their stored bytes together, side data and padding included, are
// at most `bits_per_weight` bits for each of their weights, and as close to it as whole bytes of
// rows allow. They go to the sites of most importance for each weight (site_importance.h), with
// diminishing returns.
//
// OUT_OF_RANGE naming the possible range when the target is below what the smallest sketches
// take, or above what the largest do.
absl::StatusOr<std::vector<std::vector<AbsMaxMinClass>>> PlanAbsMaxMin(
    absl::Span<const LinearSite> sites, absl::Span<const double> importance, double bits_per_weight,
    const AbsMaxMinStyle& style);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_ABSMAXMIN_PLAN_H_
