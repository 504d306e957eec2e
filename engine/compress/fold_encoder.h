// From a site's dense weights and calibration to its folding sketch.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_FOLD_ENCODER_H_
#define ULTRASKETCH_ENGINE_COMPRESS_FOLD_ENCODER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/base/thread_pool.h"
#include "engine/codecs/fold/fold_linear.h"
#include "engine/compress/fold_fit.h"
#include "engine/compress/fold_plan.h"
#include "engine/compress/site_encoder.h"

namespace ultrasketch {

// The classes of a site's columns for a shape: exactly shape.buckets buckets. `column_importance`
// [cols] is looked at where shape.ranked: the more important class has fewer columns to a group, or
// more planes.
FoldLayout ChooseFoldLayout(const LinearSite& site, const FoldShape& shape, uint64_t seed,
                            absl::Span<const double> column_importance);

// The moments of the inputs folded by `layout`, with `prior` tokens' worth of uncorrelated inputs
// of unit variance for which y = W x, W being `weights` [rows, cols].
FoldMoments FoldTheMoments(const FoldLayout& layout, const SiteMoments& moments,
                           absl::Span<const float> weights, double prior, ThreadPool& pool);

// The bit planes of each group, [groups].
std::vector<uint8_t> PlanesOfGroups(const FoldLayout& layout);

// Fits a site to its complete moments. Errors are the device's.
absl::StatusOr<std::unique_ptr<FoldLinear>> FitFoldSite(const LinearSite& site,
                                                        const FoldShape& shape, uint64_t seed,
                                                        absl::Span<const float> weights,
                                                        FitMoments& moments, ThreadPool& pool);

class FoldEncoder : public SiteEncoder {
 public:
  // A shape for each of the sites.
  FoldEncoder(absl::Span<const LinearSite> sites, std::vector<FoldShape> shapes, uint64_t seed);

  nlohmann::json Parameters() const override;
  absl::StatusOr<std::unique_ptr<EncodedLinear>> Encode(size_t index,
                                                        absl::Span<const float> weights,
                                                        FitMoments& moments,
                                                        ThreadPool& pool) const override;

 private:
  const std::vector<LinearSite> sites_;
  const std::vector<FoldShape> shapes_;
  const uint64_t seed_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_FOLD_ENCODER_H_
