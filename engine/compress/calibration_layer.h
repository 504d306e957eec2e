// A decoder layer over whole windows of text, in float and without a KV cache: what the streams of
// a calibration pass through. Follows the table of a layer (models/layer_table.h).
#ifndef ULTRASKETCH_ENGINE_COMPRESS_CALIBRATION_LAYER_H_
#define ULTRASKETCH_ENGINE_COMPRESS_CALIBRATION_LAYER_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/base/thread_pool.h"
#include "engine/compress/dense_site.h"
#include "engine/format/checkpoint.h"
#include "engine/models/layer_table.h"

namespace ultrasketch {

// By LayerVector; empty where the architecture has none.
using LayerVectorValues = std::array<std::vector<float>, kNumLayerVectors>;

// Errors are those of GetTensor and CheckFinite.
absl::StatusOr<LayerVectorValues> ReadLayerVectors(const Checkpoint& checkpoint, int layer);

// Makes what the sites of a model's layers read. Both arguments must outlive it.
class SiteInputs {
 public:
  SiteInputs(const ModelConfig& config, ThreadPool& pool)
      : config_(config), pool_(pool), inverse_frequencies_(RopeInverseFrequencies(config)) {}

  // x [num_tokens, cols] of the row's site in `layer`. `from` is what it reads of: the residual
  // stream, or what the row before wrote, which attention changes. The tokens are windows of
  // `window_tokens`.
  void Make(const LayerRow& row, int layer, const LayerVectorValues& vectors,
            absl::Span<const int64_t> window_tokens, float* from, float* x) const;

 private:
  const ModelConfig& config_;
  ThreadPool& pool_;
  const std::vector<float> inverse_frequencies_;
};

// A layer of the dense model.
class DenseLayer {
 public:
  // `sites` are the checkpoint's, in order of execution. Errors are those of DenseSite::Read and
  // ReadLayerVectors.
  static absl::StatusOr<DenseLayer> Read(const Checkpoint& checkpoint,
                                         absl::Span<const LinearSite> sites, int layer,
                                         ThreadPool& pool);

  // Takes `hidden` [num_tokens, hidden_size] through the layer. `on_output` may change what a site
  // has put out, y [num_tokens, rows], before it goes on.
  void Run(const SiteInputs& inputs, absl::Span<const int64_t> window_tokens,
           absl::FunctionRef<void(const LinearSite& site, float* y)> on_output, ThreadPool& pool,
           std::vector<float>& hidden) const;

 private:
  int layer_ = 0;
  LayerVectorValues vectors_;
  std::vector<DenseSite> sites_;  // by SiteKind
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_CALIBRATION_LAYER_H_
