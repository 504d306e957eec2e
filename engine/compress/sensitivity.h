// How much a model's predictions depend on each of its linear sites.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_SENSITIVITY_H_
#define ULTRASKETCH_ENGINE_COMPRESS_SENSITIVITY_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/base/thread_pool.h"
#include "engine/codecs/linear_site.h"
#include "engine/compress/calibration.h"
#include "engine/compress/fit_device.h"
#include "engine/format/checkpoint.h"

namespace ultrasketch {

struct SensitivityOptions {
  uint64_t seed = 0;  // of the noise
  // Called with the fraction that is done; an error ends the measurement.
  std::function<absl::Status(double fraction)> progress;
};

// For each of `sites` (all of the checkpoint's, in order of execution): the mean Kullback-Leibler
// divergence, in nats a token, of the model's predictions from those of the model in which this
// site alone gives outputs with the error that a sketch of it has: shrunk, and with noise of their
// own. Measured on the first tokens of windows spread over `text`.
//
// Its time is that of about half a forward pass of a thousand tokens for each of the sites.
absl::StatusOr<std::vector<double>> MeasureSensitivities(const Checkpoint& checkpoint,
                                                         absl::Span<const LinearSite> sites,
                                                         const CalibrationText& text,
                                                         const SensitivityOptions& options,
                                                         FitDevice& device, ThreadPool& pool);

// Bytes of activations that it holds in the device's memory: one residual stream for each site.
// Beside them are a layer's weights as floats, or the head's.
int64_t SensitivityMemory(const ModelConfig& config, int64_t batch_tokens);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_SENSITIVITY_H_
