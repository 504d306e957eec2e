// Compresses a decoder layer by layer on a calibration text.
//
// Two streams of activations run through the layers side by side: the dense model's and that of
// the model whose sites so far are compressed. Each site is fitted to give, from the *compressed*
// stream's inputs, what the dense model has: the dense site's outputs, or, for the two sites that
// write to the residual stream, all that the compressed residual lacks to equal the dense one. So
// every site makes up for the errors of those before it.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_LAYER_FIT_H_
#define ULTRASKETCH_ENGINE_COMPRESS_LAYER_FIT_H_

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/base/thread_pool.h"
#include "engine/codecs/codec.h"
#include "engine/compress/calibration.h"
#include "engine/compress/fit_device.h"
#include "engine/compress/model_writer.h"
#include "engine/compress/site_encoder.h"
#include "engine/format/checkpoint.h"

namespace ultrasketch {

struct FittedSite {
  std::unique_ptr<EncodedLinear> encoded;
  double relative_weight_error = 0;
  double relative_output_error = 0;
  // |h' - h|^2 / |h|^2 of the residual streams after the site; NaN where it does not write to them.
  double relative_residual_error = std::numeric_limits<double>::quiet_NaN();
};

struct FittedLayer {
  std::vector<FittedSite> sites;  // by SiteKind
  // The weights of its norms, refitted to the compressed sites that read them, in their order.
  std::vector<ReplacedTensor> norms;
  // What the sites may refer to.
  std::shared_ptr<const TensorSource> source;
};

struct LayerFit {
  std::vector<FittedLayer> layers;
  // The last norm's weight, refitted so that its outputs are closest to the dense model's.
  ReplacedTensor last_norm;
};

struct LayerFitOptions {
  // The compressed model's embedding table, whose rounding the layers can make up for; null: the
  // dense model's.
  const EncodedLinear* embedding = nullptr;

  // Called before each site with its index; an error ends the fit.
  std::function<absl::Status(size_t site)> on_site;

  // The first `num_finished_layers` are not fitted, but as `finished_layer` has them.
  int num_finished_layers = 0;
  std::function<absl::StatusOr<FittedLayer>(int layer)> finished_layer;

  // Called with each layer that has been fitted; an error ends the fit. May be empty.
  std::function<absl::Status(int layer, const FittedLayer& fitted)> on_layer;
};

// Fits `sites` (all of the checkpoint's, in order of execution), for which `encoder` was made.
absl::StatusOr<LayerFit> FitLayers(const Checkpoint& checkpoint, absl::Span<const LinearSite> sites,
                                   const SiteEncoder& encoder, const CalibrationText& text,
                                   const LayerFitOptions& options, FitDevice& device,
                                   ThreadPool& pool);

// Bytes of the device's memory that the streams take, and those of a batch of a text of
// `window_tokens` in each window.
int64_t LayerFitMemory(const ModelConfig& config, int64_t num_tokens, int64_t window_tokens,
                       int64_t batch_tokens);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_LAYER_FIT_H_
