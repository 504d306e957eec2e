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

// Sums over calibration tokens of a site's compressed inputs x [cols] and the output y [rows] that
// it should give.
struct SiteMoments {
  RowMajorMatrix input;    // sum of x x^T [cols, cols]
  RowMajorMatrix cross;    // sum of y x^T [rows, cols]
  Eigen::VectorXd output;  // sum of y^2 [rows]
};

// Sets cross and output for y = W u, from the moments of the dense inputs u: sums of u u^T and of
// u x^T [cols, cols].
void SetOutputMoments(const LinearSite& site, absl::Span<const float> weights,
                      const RowMajorMatrix& dense_input, const RowMajorMatrix& dense_cross,
                      SiteMoments& moments, ThreadPool& pool);

// The moments of inputs that are uncorrelated and of unit variance, y = W x: with nothing known
// about a site's inputs, the weights decide alone.
SiteMoments WeightMoments(const LinearSite& site, absl::Span<const float> weights);

// Fits a site. `relative_output_error` is |y' - y|^2 / |y|^2 over the moments' tokens.
std::unique_ptr<FoldLinear> FitFoldSite(const LinearSite& site, const FoldShape& shape,
                                        uint64_t seed, absl::Span<const float> weights,
                                        const SiteMoments& moments, ThreadPool& pool,
                                        double& relative_output_error);

// |W' - W|^2 / |W|^2.
double RelativeWeightError(const EncodedLinear& encoded, absl::Span<const float> weights,
                           ThreadPool& pool);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_FOLD_ENCODER_H_
