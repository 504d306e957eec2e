// From a site's dense weights and calibration to its folding sketch.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_FOLD_ENCODER_H_
#define ULTRASKETCH_ENGINE_COMPRESS_FOLD_ENCODER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/base/tensor.h"
#include "engine/base/thread_pool.h"
#include "engine/codecs/fold/fold_linear.h"
#include "engine/compress/fold_fit.h"
#include "engine/compress/fold_plan.h"

namespace ultrasketch {

// A site's dense weights [rows, cols] as float, members stacked. Errors are those of GetTensor and
// CheckFinite.
absl::StatusOr<std::vector<float>> ReadSiteWeights(const LinearSite& site,
                                                   const TensorSource& source);

// The classes of a site's columns for a shape: exactly shape.buckets buckets. `column_importance`
// [cols] is looked at where shape.ranked: the more important class has fewer columns to a bucket.
FoldLayout ChooseFoldLayout(const LinearSite& site, const FoldShape& shape, uint64_t seed,
                            absl::Span<const double> column_importance);

// The moments of a site whose inputs are uncorrelated with unit variance, for `weight` tokens: with
// nothing known about inputs, the weights decide alone. Zero moments are filled; others are added
// to.
void AddWeightMoments(const FoldLayout& layout, absl::Span<const float> weights, double weight,
                      FoldMoments& moments);

// |W' - W|^2 / |W|^2.
double RelativeWeightError(const EncodedLinear& encoded, absl::Span<const float> weights,
                           ThreadPool& pool);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_FOLD_ENCODER_H_
