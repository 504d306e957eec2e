#include "engine/compress/calibration_layer.h"

#include <numeric>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/compress/decoder_math.h"

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

void SiteInputs::Make(const LayerRow& row, int layer, const LayerVectorValues& vectors,
                      absl::Span<const int64_t> window_tokens, float* from, float* x) const {
  const auto vector = [&](LayerVector which) -> absl::Span<const float> {
    return vectors[static_cast<size_t>(which)];
  };
  switch (row.reads) {
    case SiteReads::kNormalized:
      NormalizeRows(from, vector(row.norm), config_.rms_norm_eps, NumTokens(window_tokens), x,
                    pool_);
      break;
    case SiteReads::kAttended: {
      WindowAttention attention;
      if (config_.has_rope(layer)) attention.inverse_frequencies = inverse_frequencies_;
      attention.query_norm = vector(LayerVector::kQueryNorm);
      attention.key_norm = vector(LayerVector::kKeyNorm);
      AttendWindows(config_, attention, window_tokens, from, x, pool_);
      break;
    }
    case SiteReads::kGated:
      GateRows(from, config_.intermediate_size, NumTokens(window_tokens), x, pool_);
      break;
  }
}

absl::StatusOr<DenseLayer> DenseLayer::Read(const Checkpoint& checkpoint,
                                            absl::Span<const LinearSite> sites, int layer,
                                            ThreadPool& pool) {
  DenseLayer read;
  read.layer_ = layer;
  US_ASSIGN_OR_RETURN(read.vectors_, ReadLayerVectors(checkpoint, layer));
  for (int kind = 0; kind < kNumSiteKinds; ++kind) {
    const LinearSite& site = sites[static_cast<size_t>(layer * kNumSiteKinds + kind)];
    US_CHECK(site.layer == layer && site.kind == static_cast<SiteKind>(kind));
    US_ASSIGN_OR_RETURN(DenseSite dense, DenseSite::Read(site, checkpoint, pool));
    read.sites_.push_back(std::move(dense));
  }
  return read;
}

void DenseLayer::Run(const SiteInputs& inputs, absl::Span<const int64_t> window_tokens,
                     absl::FunctionRef<void(const LinearSite& site, float* y)> on_output,
                     ThreadPool& pool, std::vector<float>& hidden) const {
  const int64_t num_tokens = NumTokens(window_tokens);
  std::vector<float> x;
  std::vector<float> y;
  for (const LayerRow& row : kLayerTable) {
    const DenseSite& dense = sites_[static_cast<size_t>(row.site)];
    x.resize(static_cast<size_t>(num_tokens * dense.site().cols));
    inputs.Make(row, layer_, vectors_, window_tokens,
                row.reads == SiteReads::kNormalized ? hidden.data() : y.data(), x.data());
    y.resize(static_cast<size_t>(num_tokens * dense.site().rows));
    dense.Apply(x.data(), num_tokens, y.data(), pool);
    on_output(dense.site(), y.data());
    if (row.writes != SiteWrites::kResidual) continue;
    for (size_t i = 0; i < hidden.size(); ++i) hidden[i] += y[i];
  }
}

}  // namespace ultrasketch
