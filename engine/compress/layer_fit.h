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
#include "engine/compress/model_writer.h"
#include "engine/compress/site_encoder.h"
#include "engine/format/checkpoint.h"

namespace ultrasketch {

struct LayerFitOptions {
  // Called before each site with its index; an error ends the fit.
  std::function<absl::Status(size_t site)> on_site;
};

struct FittedSite {
  std::unique_ptr<EncodedLinear> encoded;
  double relative_weight_error = 0;
  double relative_output_error = 0;
  // |h' - h|^2 / |h|^2 of the residual streams after the site; NaN where it does not write to them.
  double relative_residual_error = std::numeric_limits<double>::quiet_NaN();
};

struct LayerFit {
  std::vector<FittedSite> sites;  // parallel to the sites asked for
  // The weights of all norms, refitted to the compressed sites that read them, and the last one so
  // that its outputs are closest to the dense model's.
  std::vector<ReplacedTensor> replaced;
};

// Fits `sites` (all of the checkpoint's, in order of execution), for which `encoder` was made.
// Holds two activations of hidden_size floats for every calibration token, and one layer's dense
// weights.
absl::StatusOr<LayerFit> FitLayers(const Checkpoint& checkpoint, absl::Span<const LinearSite> sites,
                                   const SiteEncoder& encoder, const CalibrationText& text,
                                   const LayerFitOptions& options, ThreadPool& pool);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_LAYER_FIT_H_
