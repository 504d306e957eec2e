#include "engine/models/decoder_layer.h"

#include <optional>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/codecs/codec.h"
#include "engine/models/checkpoint_codec.h"
#include "engine/models/layer_table.h"

namespace ultrasketch {
absl::StatusOr<LoadedLinear> LoadLinearSite(const Checkpoint& checkpoint, const LinearSite& site,
                                            Backend& backend) {
  US_ASSIGN_OR_RETURN(const std::string codec, CheckpointCodec(checkpoint));
  LoadedLinear loaded;
  US_ASSIGN_OR_RETURN(
      loaded.encoded,
      FindCodec(codec)->Load(site, checkpoint, checkpoint.config().quantization_config));
  US_ASSIGN_OR_RETURN(const std::vector<float> bias, LoadBias(site, checkpoint));
  US_ASSIGN_OR_RETURN(loaded.device, backend.LoadLinear(*loaded.encoded, bias));
  return loaded;
}

int64_t DecoderLayer::resident_bytes() const {
  int64_t bytes = 0;
  for (const LoadedLinear& site : sites) bytes += site.device->resident_bytes();
  for (const auto& vector : vectors) bytes += vector != nullptr ? vector->resident_bytes() : 0;
  return bytes;
}

absl::StatusOr<DecoderLayer> LoadDecoderLayer(const Checkpoint& checkpoint, int layer,
                                              Backend& backend) {
  const ModelConfig& config = checkpoint.config();
  DecoderLayer loaded;
  loaded.has_rope = config.has_rope(layer);
  for (const LayerVector vector : LayerVectors(config)) {
    const std::string name = LayerVectorName(layer, vector);
    US_ASSIGN_OR_RETURN(const TensorView view,
                        GetTensor(checkpoint, name, {}, {LayerVectorSize(config, vector)}));
    US_RETURN_IF_ERROR(CheckFinite(checkpoint, name, view));
    US_ASSIGN_OR_RETURN(loaded.vectors[static_cast<size_t>(vector)], backend.LoadVector(view));
  }
  const std::vector<LinearSite> sites = LinearSites(config);
  for (int kind = 0; kind < kNumSiteKinds; ++kind) {
    const LinearSite& site = sites[static_cast<size_t>(layer * kNumSiteKinds + kind)];
    US_ASSIGN_OR_RETURN(loaded.site(site.kind), LoadLinearSite(checkpoint, site, backend));
  }
  return loaded;
}

DecoderShape::DecoderShape(const ModelConfig& config)
    : attention{config.num_attention_heads, config.num_kv_heads, config.head_dim},
      epsilon(config.rms_norm_eps) {}

absl::StatusOr<LayerBuffers> LayerBuffers::Allocate(const ModelConfig& config, int64_t num_tokens,
                                                    Backend& backend) {
  const auto allocate = [&](int64_t width) {
    return backend.AllocateWorkspace(num_tokens * width * backend.activation_bytes());
  };
  LayerBuffers buffers;
  US_ASSIGN_OR_RETURN(buffers.hidden, allocate(config.hidden_size));
  US_ASSIGN_OR_RETURN(buffers.qkv, allocate(config.query_width() + 2 * config.key_width()));
  US_ASSIGN_OR_RETURN(buffers.gate_up, allocate(2 * config.intermediate_size));
  US_RETURN_IF_ERROR(backend.ReserveStep(num_tokens));
  return buffers;
}

int64_t LayerBuffers::resident_bytes() const {
  return hidden->resident_bytes() + qkv->resident_bytes() + gate_up->resident_bytes();
}

namespace {

SiteInput InputOf(const LayerRow& row, const DecoderShape& shape, const DecoderLayer& layer,
                  int cache_layer, AttentionState& attention, LayerBuffers& buffers) {
  switch (row.reads) {
    case SiteReads::kNormalized:
      return Normalized{buffers.hidden.get(), layer.vector(row.norm), shape.epsilon};
    case SiteReads::kGated:
      return Gated{buffers.gate_up.get()};
    case SiteReads::kAttended:
      break;
  }
  Attended input = {.shape = shape.attention,
                    .qkv = buffers.qkv.get(),
                    .head_norms = std::nullopt,
                    .inverse_frequencies = nullptr,
                    .layout = &attention.layout,
                    .layer = cache_layer,
                    .cache = attention.cache.get()};
  if (const DeviceVector* query_norm = layer.vector(LayerVector::kQueryNorm)) {
    input.head_norms = {query_norm, layer.vector(LayerVector::kKeyNorm), shape.epsilon};
  }
  if (layer.has_rope) input.inverse_frequencies = attention.inverse_frequencies.get();
  return input;
}

SiteOutput OutputOf(const LayerRow& row, const DecoderLayer& layer, LayerBuffers& buffers) {
  switch (row.writes) {
    case SiteWrites::kQkv:
      return {buffers.qkv.get()};
    case SiteWrites::kGateUp:
      return {buffers.gate_up.get(), SiteOutput::Mode::kWriteGates,
              layer.site(SiteKind::kMlpOutput).device.get()};
    case SiteWrites::kResidual:
      break;
  }
  return {buffers.hidden.get(), SiteOutput::Mode::kAdd};
}

}  // namespace

RowArguments ArgumentsOf(const LayerRow& row, const DecoderShape& shape, const DecoderLayer& layer,
                         int cache_layer, AttentionState& attention, LayerBuffers& buffers) {
  return {InputOf(row, shape, layer, cache_layer, attention, buffers), *layer.site(row.site).device,
          OutputOf(row, layer, buffers)};
}

void RunDecoderLayer(const DecoderShape& shape, const DecoderLayer& layer, int cache_layer,
                     AttentionState& attention, LayerBuffers& buffers, Backend& backend) {
  for (const LayerRow& row : kLayerTable) {
    const RowArguments arguments = ArgumentsOf(row, shape, layer, cache_layer, attention, buffers);
    backend.Apply(arguments.input, arguments.site, arguments.output);
  }
}

}  // namespace ultrasketch
