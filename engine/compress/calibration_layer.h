// A decoder layer over whole windows of text, in float and without a KV cache: what the streams of
// a calibration pass through. Follows the table of a layer (models/layer_table.h).
#ifndef ULTRASKETCH_ENGINE_COMPRESS_CALIBRATION_LAYER_H_
#define ULTRASKETCH_ENGINE_COMPRESS_CALIBRATION_LAYER_H_

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/compress/dense_site.h"
#include "engine/compress/fit_device.h"
#include "engine/format/checkpoint.h"
#include "engine/models/layer_table.h"

namespace ultrasketch {

// By LayerVector; empty where the architecture has none.
using LayerVectorValues = std::array<std::vector<float>, kNumLayerVectors>;

// The same on a device; null where there is none.
using LayerVectorArrays = std::array<std::unique_ptr<FitArray>, kNumLayerVectors>;

// Errors are those of GetTensor and CheckFinite.
absl::StatusOr<LayerVectorValues> ReadLayerVectors(const Checkpoint& checkpoint, int layer);

absl::StatusOr<LayerVectorArrays> LoadLayerVectors(const LayerVectorValues& values,
                                                   FitDevice& device);

// Floats in the device's memory.
absl::StatusOr<std::unique_ptr<FitArray>> LoadArray(absl::Span<const float> values,
                                                    FitDevice& device);

// Makes what the sites of a model's layers read. The arguments must outlive it.
class SiteInputs {
 public:
  static absl::StatusOr<SiteInputs> Make(const ModelConfig& config, FitDevice& device);

  // x [num_tokens, cols] of the row's site in `layer`. `from` is what it reads of: the residual
  // stream, or what the row before wrote, which attention changes. The tokens are windows of
  // `window_tokens`. Both in the device's memory.
  void Make(const LayerRow& row, int layer, const LayerVectorArrays& vectors,
            absl::Span<const int64_t> window_tokens, float* from, float* x) const;

 private:
  SiteInputs(const ModelConfig& config, FitDevice& device) : config_(&config), device_(&device) {}

  const ModelConfig* config_;
  FitDevice* device_;
  std::unique_ptr<FitArray> inverse_frequencies_;
};

// A layer of the dense model on a device.
class DenseLayer {
 public:
  // `sites` are the checkpoint's, in order of execution. Errors are those of DenseSite::Read,
  // ReadLayerVectors and the device.
  static absl::StatusOr<DenseLayer> Read(const Checkpoint& checkpoint,
                                         absl::Span<const LinearSite> sites, int layer,
                                         FitDevice& device);

  // Takes `hidden` [num_tokens, hidden_size] through the layer. `on_output` may change what a site
  // has put out, y [num_tokens, rows], before it goes on. Both in the device's memory.
  absl::Status Run(const SiteInputs& inputs, absl::Span<const int64_t> window_tokens,
                   absl::FunctionRef<absl::Status(const LinearSite& site, float* y)> on_output,
                   float* hidden) const;

 private:
  explicit DenseLayer(FitDevice& device) : device_(&device) {}

  FitDevice* device_;
  int layer_ = 0;
  LayerVectorArrays vectors_;
  // By SiteKind.
  std::vector<std::unique_ptr<DenseSite>> sites_;
  std::vector<std::unique_ptr<FitProduct>> products_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_CALIBRATION_LAYER_H_
