// One layer of a Llama-family decoder: its weights on a device, and its part of a step.
#ifndef ULTRASKETCH_ENGINE_MODELS_DECODER_LAYER_H_
#define ULTRASKETCH_ENGINE_MODELS_DECODER_LAYER_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"

#include "engine/backends/backend.h"
#include "engine/codecs/linear_site.h"
#include "engine/format/checkpoint.h"
#include "engine/kv/cache_layout.h"

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
  std::unique_ptr<DeviceVector> attention_norm;
  LoadedLinear attention_input;
  LoadedLinear attention_output;
  std::unique_ptr<DeviceVector> mlp_norm;
  LoadedLinear mlp_input;
  LoadedLinear mlp_output;

  // Of the widest site.
  int64_t prepared_width() const;
  int64_t resident_bytes() const;
};

absl::StatusOr<DecoderLayer> LoadDecoderLayer(const Checkpoint& checkpoint, int layer,
                                              Backend& backend);

// What all layers of a model have in common.
struct DecoderShape {
  explicit DecoderShape(const ModelConfig& config);

  AttentionShape attention;
  int64_t intermediate_size;
  float epsilon;
};

// Activations of a step of up to num_tokens tokens.
struct LayerBuffers {
  // RESOURCE_EXHAUSTED as Backend::Allocate. `prepared_width` is the widest layer's.
  static absl::StatusOr<LayerBuffers> Allocate(const ModelConfig& config, int64_t num_tokens,
                                               int64_t prepared_width, Backend& backend);

  std::unique_ptr<DeviceBuffer> hidden;    // [num_tokens, hidden_size]: the residual stream
  std::unique_ptr<DeviceBuffer> prepared;  // a site's prepared input
  std::unique_ptr<DeviceBuffer> qkv;       // [num_tokens, qkv_width]
  std::unique_ptr<DeviceBuffer> gate_up;   // [num_tokens, 2 * intermediate_size]

  int64_t resident_bytes() const;
};

// A paged cache and the frequencies of the rotary embedding, for attention.
struct AttentionState {
  KvCacheLayout layout;
  std::unique_ptr<DeviceBuffer> cache;
  std::unique_ptr<DeviceVector> inverse_frequencies;  // [head_dim / 2]
};

// Takes buffers.hidden through the layer, between a BeginStep and its EndStep. `cache_layer` is the
// layer's place in the cache.
void RunDecoderLayer(const DecoderShape& shape, const DecoderLayer& layer, int cache_layer,
                     AttentionState& attention, LayerBuffers& buffers, Backend& backend);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_MODELS_DECODER_LAYER_H_
