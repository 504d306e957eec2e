#include "engine/models/decoder_layer.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "engine/base/status.h"
#include "engine/codecs/codec.h"
#include "engine/models/linear_sites.h"

namespace ultrasketch {
namespace {

// The codec that a checkpoint's sites are in.
absl::StatusOr<const Codec*> CodecOf(const Checkpoint& checkpoint) {
  const nlohmann::json& quantization = checkpoint.config().quantization_config;
  if (quantization.is_null()) return FindCodec("dense");
  const auto name = quantization.find("codec");
  if (name != quantization.end() && name->is_string()) {
    const Codec* codec = FindCodec(name->get_ref<const std::string&>());
    if (codec != nullptr) return codec;
  }
  return absl::DataLossError(absl::StrCat(
      checkpoint.folder(), "/config.json: quantization_config.codec: expected one of ",
      absl::StrJoin(CodecNames(), ", ",
                    [](std::string* out, std::string_view codec) { out->append(codec); }),
      ", found ",
      name == quantization.end()
          ? "nothing"
          : name->dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)));
}

absl::StatusOr<std::unique_ptr<DeviceVector>> LoadNorm(const Checkpoint& checkpoint,
                                                       const std::string& name, Backend& backend) {
  US_ASSIGN_OR_RETURN(const TensorView view,
                      GetTensor(checkpoint, name, {}, {checkpoint.config().hidden_size}));
  US_RETURN_IF_ERROR(CheckFinite(checkpoint, name, view));
  return backend.LoadVector(view);
}

}  // namespace

absl::StatusOr<LoadedLinear> LoadLinearSite(const Checkpoint& checkpoint, const LinearSite& site,
                                            Backend& backend) {
  US_ASSIGN_OR_RETURN(const Codec* const codec, CodecOf(checkpoint));
  LoadedLinear loaded;
  US_ASSIGN_OR_RETURN(loaded.encoded,
                      codec->Load(site, checkpoint, checkpoint.config().quantization_config));
  US_ASSIGN_OR_RETURN(const std::vector<float> bias, LoadBias(site, checkpoint));
  US_ASSIGN_OR_RETURN(loaded.device, backend.LoadLinear(*loaded.encoded, bias));
  return loaded;
}

int64_t DecoderLayer::prepared_width() const {
  return std::max({attention_input.device->prepared_width(),
                   attention_output.device->prepared_width(), mlp_input.device->prepared_width(),
                   mlp_output.device->prepared_width()});
}

int64_t DecoderLayer::resident_bytes() const {
  return attention_norm->resident_bytes() + attention_input.device->resident_bytes() +
         attention_output.device->resident_bytes() + mlp_norm->resident_bytes() +
         mlp_input.device->resident_bytes() + mlp_output.device->resident_bytes();
}

absl::StatusOr<DecoderLayer> LoadDecoderLayer(const Checkpoint& checkpoint, int layer,
                                              Backend& backend) {
  DecoderLayer loaded;
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  US_ASSIGN_OR_RETURN(loaded.attention_norm,
                      LoadNorm(checkpoint, prefix + "input_layernorm.weight", backend));
  US_ASSIGN_OR_RETURN(loaded.mlp_norm,
                      LoadNorm(checkpoint, prefix + "post_attention_layernorm.weight", backend));
  LoadedLinear* const linears[] = {&loaded.attention_input, &loaded.attention_output,
                                   &loaded.mlp_input, &loaded.mlp_output};
  const std::vector<LinearSite> sites = LinearSites(checkpoint.config());
  for (int kind = 0; kind < kNumSiteKinds; ++kind) {
    const LinearSite& site = sites[static_cast<size_t>(layer * kNumSiteKinds + kind)];
    US_ASSIGN_OR_RETURN(*linears[static_cast<int>(site.kind)],
                        LoadLinearSite(checkpoint, site, backend));
  }
  return loaded;
}

DecoderShape::DecoderShape(const ModelConfig& config)
    : attention{config.num_attention_heads, config.num_kv_heads, config.head_dim},
      intermediate_size(config.intermediate_size),
      epsilon(config.rms_norm_eps) {}

absl::StatusOr<LayerBuffers> LayerBuffers::Allocate(const ModelConfig& config, int64_t num_tokens,
                                                    int64_t prepared_width, Backend& backend) {
  const auto allocate = [&](int64_t width) {
    return backend.AllocateWorkspace(num_tokens * width * backend.activation_bytes());
  };
  LayerBuffers buffers;
  US_ASSIGN_OR_RETURN(buffers.hidden, allocate(config.hidden_size));
  US_ASSIGN_OR_RETURN(buffers.prepared, allocate(prepared_width));
  US_ASSIGN_OR_RETURN(buffers.qkv, allocate(config.query_width() + 2 * config.key_width()));
  US_ASSIGN_OR_RETURN(buffers.gate_up, allocate(2 * config.intermediate_size));
  return buffers;
}

int64_t LayerBuffers::resident_bytes() const {
  return hidden->resident_bytes() + prepared->resident_bytes() + qkv->resident_bytes() +
         gate_up->resident_bytes();
}

void RunDecoderLayer(const DecoderShape& shape, const DecoderLayer& layer, int cache_layer,
                     AttentionState& attention, LayerBuffers& buffers, Backend& backend) {
  auto& [hidden, prepared, qkv, gate_up] = buffers;
  backend.RmsNorm(*hidden, *layer.attention_norm, shape.epsilon, *layer.attention_input.device,
                  *prepared);
  backend.Linear(*layer.attention_input.device, *prepared, *qkv);
  backend.RotateAndStore(shape.attention, *attention.inverse_frequencies, attention.layout,
                         cache_layer, *qkv, *attention.cache);
  backend.Attention(shape.attention, attention.layout, cache_layer, *qkv, *attention.cache,
                    *layer.attention_output.device, *prepared);
  backend.LinearAdd(*layer.attention_output.device, *prepared, *hidden);

  backend.RmsNorm(*hidden, *layer.mlp_norm, shape.epsilon, *layer.mlp_input.device, *prepared);
  backend.Linear(*layer.mlp_input.device, *prepared, *gate_up);
  backend.SwiGlu(*gate_up, shape.intermediate_size, *layer.mlp_output.device, *prepared);
  backend.LinearAdd(*layer.mlp_output.device, *prepared, *hidden);
}

}  // namespace ultrasketch
