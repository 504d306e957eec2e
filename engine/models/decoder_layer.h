// One layer of a Llama-family decoder: its weights on a device, and its part of a step. What a
// layer is, layer_table.h says.
#ifndef ULTRASKETCH_ENGINE_MODELS_DECODER_LAYER_H_
#define ULTRASKETCH_ENGINE_MODELS_DECODER_LAYER_H_

#include <array>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"

#include "engine/backends/backend.h"
#include "engine/codecs/linear_site.h"
#include "engine/format/checkpoint.h"
#include "engine/kv/cache_layout.h"
#include "engine/models/layer_table.h"

namespace ultrasketch {

// A linear site on a device. The encoded weights stay with it: the device's form may refer to them.
struct LoadedLinear {
  std::unique_ptr<EncodedLinear> encoded;
  std::unique_ptr<DeviceLinear> device;
};

// Reads a site in the codec that the checkpoint is in, with its members' biases. `checkpoint` must
// outlive the result. DATA_LOSS when quantization_config names no codec.
absl::StatusOr<LoadedLinear> LoadLinearSite(const Checkpoint& checkpoint, const LinearSite& site,
                                            Backend& backend);

struct DecoderLayer {
  std::array<LoadedLinear, kNumSiteKinds> sites;                        // by SiteKind
  std::array<std::unique_ptr<DeviceVector>, kNumLayerVectors> vectors;  // null: there is none
  bool has_rope = true;

  LoadedLinear& site(SiteKind kind) { return sites[static_cast<size_t>(kind)]; }
  const LoadedLinear& site(SiteKind kind) const { return sites[static_cast<size_t>(kind)]; }
  const DeviceVector* vector(LayerVector which) const {
    return vectors[static_cast<size_t>(which)].get();
  }
  int64_t resident_bytes() const;
};

absl::StatusOr<DecoderLayer> LoadDecoderLayer(const Checkpoint& checkpoint, int layer,
                                              Backend& backend);

// What all layers of a model have in common.
struct DecoderShape {
  explicit DecoderShape(const ModelConfig& config);

  AttentionShape attention;
  float epsilon;
};

// Activations of a step of up to num_tokens tokens.
struct LayerBuffers {
  // Reserves the backend's part of such a step too: after all layers have been loaded.
  // RESOURCE_EXHAUSTED as Backend::Allocate.
  static absl::StatusOr<LayerBuffers> Allocate(const ModelConfig& config, int64_t num_tokens,
                                               Backend& backend);

  std::unique_ptr<DeviceBuffer> hidden;   // [num_tokens, hidden_size]: the residual stream
  std::unique_ptr<DeviceBuffer> qkv;      // [num_tokens, qkv_width]
  std::unique_ptr<DeviceBuffer> gate_up;  // [num_tokens, 2 * intermediate_size]

  int64_t resident_bytes() const;
};

// A paged cache and the frequencies of the rotary embedding, for attention.
struct AttentionState {
  KvCacheLayout layout;
  std::unique_ptr<DeviceBuffer> cache;
  std::unique_ptr<DeviceVector> inverse_frequencies;  // [head_dim / 2]
};

// A row of the layer's table in a step: the arguments of Backend::Apply. `cache_layer` is the
// layer's place in the cache.
struct RowArguments {
  SiteInput input;
  const DeviceLinear& site;
  SiteOutput output;
};
RowArguments ArgumentsOf(const LayerRow& row, const DecoderShape& shape, const DecoderLayer& layer,
                         int cache_layer, AttentionState& attention, LayerBuffers& buffers);

// Takes buffers.hidden through the layer, between a BeginStep and its EndStep.
void RunDecoderLayer(const DecoderShape& shape, const DecoderLayer& layer, int cache_layer,
                     AttentionState& attention, LayerBuffers& buffers, Backend& backend);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_MODELS_DECODER_LAYER_H_
