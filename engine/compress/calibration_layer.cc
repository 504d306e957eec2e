#include "engine/compress/calibration_layer.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/status.h"

namespace ultrasketch {
namespace {

int64_t NumTokens(absl::Span<const int64_t> window_tokens) {
  return std::accumulate(window_tokens.begin(), window_tokens.end(), int64_t{0});
}

}  // namespace

absl::StatusOr<LayerVectorValues> ReadLayerVectors(const Checkpoint& checkpoint, int layer) {
  const ModelConfig& config = checkpoint.config();
  LayerVectorValues values;
  for (const LayerVector vector : LayerVectors(config)) {
    US_ASSIGN_OR_RETURN(
        values[static_cast<size_t>(vector)],
        ReadVector(checkpoint, LayerVectorName(layer, vector), LayerVectorSize(config, vector)));
  }
  return values;
}

absl::StatusOr<std::unique_ptr<FitArray>> LoadArray(absl::Span<const float> values,
                                                    FitDevice& device) {
  US_ASSIGN_OR_RETURN(std::unique_ptr<FitArray> array,
                      device.Allocate(static_cast<int64_t>(values.size())));
  US_RETURN_IF_ERROR(device.Upload(values, array->data()));
  return array;
}

absl::StatusOr<LayerVectorArrays> LoadLayerVectors(const LayerVectorValues& values,
                                                   FitDevice& device) {
  LayerVectorArrays arrays;
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i].empty()) continue;
    US_ASSIGN_OR_RETURN(arrays[i], LoadArray(values[i], device));
  }
  return arrays;
}

absl::StatusOr<SiteInputs> SiteInputs::Make(const ModelConfig& config, FitDevice& device) {
  SiteInputs inputs(config, device);
  US_ASSIGN_OR_RETURN(inputs.inverse_frequencies_,
                      LoadArray(RopeInverseFrequencies(config), device));
  return inputs;
}

void SiteInputs::Make(const LayerRow& row, int layer, const LayerVectorArrays& vectors,
                      absl::Span<const int64_t> window_tokens, float* from, float* x) const {
  const auto vector = [&](LayerVector which) { return vectors[static_cast<size_t>(which)].get(); };
  switch (row.reads) {
    case SiteReads::kNormalized:
      device_->Normalize(from, *vector(row.norm), config_->rms_norm_eps, NumTokens(window_tokens),
                         x);
      break;
    case SiteReads::kAttended: {
      FitAttention attention;
      attention.num_heads = config_->num_attention_heads;
      attention.num_kv_heads = config_->num_kv_heads;
      attention.head_dim = config_->head_dim;
      attention.epsilon = config_->rms_norm_eps;
      if (config_->has_rope(layer)) attention.inverse_frequencies = inverse_frequencies_.get();
      attention.query_norm = vector(LayerVector::kQueryNorm);
      attention.key_norm = vector(LayerVector::kKeyNorm);
      device_->Attend(attention, window_tokens, from, x);
      break;
    }
    case SiteReads::kGated:
      device_->Gate(from, config_->intermediate_size, NumTokens(window_tokens), x);
      break;
  }
}

absl::StatusOr<DenseLayer> DenseLayer::Read(const Checkpoint& checkpoint,
                                            absl::Span<const LinearSite> sites, int layer,
                                            FitDevice& device) {
  DenseLayer read(device);
  read.layer_ = layer;
  US_ASSIGN_OR_RETURN(const LayerVectorValues vectors, ReadLayerVectors(checkpoint, layer));
  US_ASSIGN_OR_RETURN(read.vectors_, LoadLayerVectors(vectors, device));
  for (int kind = 0; kind < kNumSiteKinds; ++kind) {
    const LinearSite& site = sites[static_cast<size_t>(layer * kNumSiteKinds + kind)];
    US_CHECK(site.layer == layer && site.kind == static_cast<SiteKind>(kind));
    US_ASSIGN_OR_RETURN(DenseSite dense, DenseSite::Read(site, checkpoint));
    read.sites_.push_back(std::make_unique<DenseSite>(std::move(dense)));
    const DenseSite& kept = *read.sites_.back();
    US_ASSIGN_OR_RETURN(auto product, device.LoadDense(kept.site(), kept.weights(), kept.bias()));
    read.products_.push_back(std::move(product));
  }
  return read;
}

absl::Status DenseLayer::Run(
    const SiteInputs& inputs, absl::Span<const int64_t> window_tokens,
    absl::FunctionRef<absl::Status(const LinearSite& site, float* y)> on_output,
    float* hidden) const {
  const int64_t num_tokens = NumTokens(window_tokens);
  int64_t most_cols = 0;
  int64_t most_rows = 0;
  for (const auto& dense : sites_) {
    most_cols = std::max(most_cols, dense->site().cols);
    most_rows = std::max(most_rows, dense->site().rows);
  }
  US_ASSIGN_OR_RETURN(const auto x, device_->Allocate(num_tokens * most_cols));
  US_ASSIGN_OR_RETURN(const auto y, device_->Allocate(num_tokens * most_rows));
  for (const LayerRow& row : kLayerTable) {
    const LinearSite& site = sites_[static_cast<size_t>(row.site)]->site();
    inputs.Make(row, layer_, vectors_, window_tokens,
                row.reads == SiteReads::kNormalized ? hidden : y->data(), x->data());
    products_[static_cast<size_t>(row.site)]->Apply(x->data(), num_tokens, y->data());
    US_RETURN_IF_ERROR(on_output(site, y->data()));
    if (row.writes == SiteWrites::kResidual) {
      device_->Add(y->data(), num_tokens * site.rows, hidden);
    }
  }
  return absl::OkStatus();
}

}  // namespace ultrasketch
