// What calibration knows about a linear site: second moments of its inputs and outputs.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_SITE_MOMENTS_H_
#define ULTRASKETCH_ENGINE_COMPRESS_SITE_MOMENTS_H_

#include <vector>

#include "Eigen/Core"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/base/tensor.h"
#include "engine/base/thread_pool.h"
#include "engine/codecs/codec.h"
#include "engine/codecs/linear_site.h"
#include "engine/compress/dense_algebra.h"

namespace ultrasketch {

// Sums over calibration tokens of a site's compressed inputs x [cols] and the output y [rows] that
// it should give.
struct SiteMoments {
  RowMajorMatrix input;    // sum of x x^T [cols, cols]
  RowMajorMatrix cross;    // sum of y x^T [rows, cols]
  Eigen::VectorXd output;  // sum of y^2 [rows]
};

// Added to the diagonal of the normal equations of a norm's channel factors (norm_refit.h),
// relative to its mean, and drawing the factors to 1.
inline constexpr double kRelativeChannelDamping = 1e-3;

// A site's dense weights [rows, cols] as float, members stacked. Errors are those of GetTensor and
// CheckFinite.
absl::StatusOr<std::vector<float>> ReadSiteWeights(const LinearSite& site,
                                                   const TensorSource& source);

// Sets cross and output for y = W u, from the moments of the dense inputs u: sums of u u^T and of
// u x^T [cols, cols].
void SetOutputMoments(const LinearSite& site, absl::Span<const float> weights,
                      const RowMajorMatrix& dense_input, const RowMajorMatrix& dense_cross,
                      SiteMoments& moments, ThreadPool& pool);

// The moments of inputs that are uncorrelated and of unit variance, y = W x: with nothing known
// about a site's inputs, the weights decide alone.
SiteMoments WeightMoments(const LinearSite& site, absl::Span<const float> weights);

// |W' - W|^2 / |W|^2. NaN when W is zero.
double RelativeWeightError(const EncodedLinear& encoded, absl::Span<const float> weights,
                           ThreadPool& pool);

// |W' x - y|^2 / |y|^2 over the moments' tokens. NaN when y is zero.
double RelativeOutputError(const EncodedLinear& encoded, const SiteMoments& moments,
                           ThreadPool& pool);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_SITE_MOMENTS_H_
