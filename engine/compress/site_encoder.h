// The seam between the fit of a whole model and the codecs: how one site's dense weights and
// calibration become a codec's form.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_SITE_ENCODER_H_
#define ULTRASKETCH_ENGINE_COMPRESS_SITE_ENCODER_H_

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "nlohmann/json_fwd.hpp"

#include "engine/base/thread_pool.h"
#include "engine/codecs/codec.h"
#include "engine/compress/fit_device.h"

namespace ultrasketch {

// Made for a model's linear sites with the bits of each planned already. Immutable.
class SiteEncoder {
 public:
  virtual ~SiteEncoder() = default;

  // What the codec wants to find in the model's quantization_config, beside the keys that all
  // codecs share.
  virtual nlohmann::json Parameters() const = 0;

  // Encodes site `index` of those that it was made for, `weights` [rows, cols] being its dense
  // weights and `moments` complete. Any finite moments give a valid result that does not depend on
  // the number of threads. Errors are the device's.
  virtual absl::StatusOr<std::unique_ptr<EncodedLinear>> Encode(size_t index,
                                                                absl::Span<const float> weights,
                                                                FitMoments& moments,
                                                                ThreadPool& pool) const = 0;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_SITE_ENCODER_H_
