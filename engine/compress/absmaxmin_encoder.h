// From a site's dense weights and calibration to its AbsMaxMin sketch.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_ABSMAXMIN_ENCODER_H_
#define ULTRASKETCH_ENGINE_COMPRESS_ABSMAXMIN_ENCODER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"

#include "engine/base/thread_pool.h"
#include "engine/codecs/absmaxmin/absmaxmin_linear.h"
#include "engine/compress/site_encoder.h"

namespace ultrasketch {

class AbsMaxMinEncoder : public SiteEncoder {
 public:
  // Classes for each of the sites.
  AbsMaxMinEncoder(absl::Span<const LinearSite> sites,
                   std::vector<std::vector<AbsMaxMinClass>> classes, uint64_t seed);

  nlohmann::json Parameters() const override;
  absl::StatusOr<std::unique_ptr<EncodedLinear>> Encode(size_t index,
                                                        absl::Span<const float> weights,
                                                        FitMoments& moments,
                                                        ThreadPool& pool) const override;

 private:
  const std::vector<LinearSite> sites_;
  const std::vector<std::vector<AbsMaxMinClass>> classes_;
  const uint64_t seed_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_ABSMAXMIN_ENCODER_H_
