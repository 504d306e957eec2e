#include "engine/models/layer_table.h"

#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/strings.h"

namespace ultrasketch {
namespace {

std::string LayerPrefix(int layer) { return absl::StrCat("model.layers.", layer, "."); }

int64_t SiteColumns(const ModelConfig& config, const LayerRow& row) {
  switch (row.reads) {
    case SiteReads::kNormalized:
      return config.hidden_size;
    case SiteReads::kAttended:
      return config.query_width();
    case SiteReads::kGated:
      return config.intermediate_size;
  }
  return 0;
}

std::vector<SiteMember> SiteMembers(const ModelConfig& config, SiteKind kind) {
  switch (kind) {
    case SiteKind::kAttentionInput:
      return {{"self_attn.q_proj", config.query_width(), config.qkv_bias},
              {"self_attn.k_proj", config.key_width(), config.qkv_bias},
              {"self_attn.v_proj", config.key_width(), config.qkv_bias}};
    case SiteKind::kAttentionOutput:
      return {{"self_attn.o_proj", config.hidden_size, config.attention_output_bias}};
    case SiteKind::kMlpInput:
      return {{"mlp.gate_proj", config.intermediate_size, config.mlp_bias},
              {"mlp.up_proj", config.intermediate_size, config.mlp_bias}};
    case SiteKind::kMlpOutput:
      return {{"mlp.down_proj", config.hidden_size, config.mlp_bias}};
  }
  return {};
}

}  // namespace

std::vector<LinearSite> LinearSites(const ModelConfig& config) {
  std::vector<LinearSite> sites;
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = LayerPrefix(layer);
    for (const LayerRow& row : kLayerTable) {
      LinearSite site;
      site.name = absl::StrCat(prefix, A(SiteKindName(row.site)));
      site.kind = row.site;
      site.layer = layer;
      site.cols = SiteColumns(config, row);
      site.members = SiteMembers(config, row.site);
      for (SiteMember& member : site.members) {
        member.name = prefix + member.name;
        site.rows += member.rows;
      }
      sites.push_back(std::move(site));
    }
  }
  return sites;
}

std::vector<LayerVector> LayerVectors(const ModelConfig& config) {
  if (!config.head_norms) return {LayerVector::kAttentionNorm, LayerVector::kMlpNorm};
  return {LayerVector::kAttentionNorm, LayerVector::kMlpNorm, LayerVector::kQueryNorm,
          LayerVector::kKeyNorm};
}

int64_t LayerVectorSize(const ModelConfig& config, LayerVector vector) {
  const bool is_of_heads = vector == LayerVector::kQueryNorm || vector == LayerVector::kKeyNorm;
  return is_of_heads ? config.head_dim : config.hidden_size;
}

size_t LayerVectorIndex(const ModelConfig& config, int layer, LayerVector vector) {
  // LayerVectors has them in order, and leaves out only the last.
  return static_cast<size_t>(layer) * LayerVectors(config).size() + static_cast<size_t>(vector);
}

std::string LayerVectorName(int layer, LayerVector vector) {
  constexpr std::array<const char*, kNumLayerVectors> kNames = {
      "input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"};
  return absl::StrCat(LayerPrefix(layer), kNames[static_cast<size_t>(vector)], ".weight");
}

}  // namespace ultrasketch
