#include "engine/models/linear_sites.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/strings.h"

namespace ultrasketch {
namespace {

LinearSite MakeSite(int layer, SiteKind kind, int64_t cols, std::vector<SiteMember> members) {
  LinearSite site;
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  site.name = absl::StrCat(prefix, A(SiteKindName(kind)));
  site.kind = kind;
  site.layer = layer;
  site.cols = cols;
  for (SiteMember& member : members) {
    member.name = prefix + member.name;
    site.rows += member.rows;
  }
  site.members = std::move(members);
  return site;
}

}  // namespace

std::vector<LinearSite> LinearSites(const ModelConfig& config) {
  std::vector<LinearSite> sites;
  for (int layer = 0; layer < config.num_layers; ++layer) {
    sites.push_back(MakeSite(layer, SiteKind::kAttentionInput, config.hidden_size,
                             {{"self_attn.q_proj", config.query_width(), config.qkv_bias},
                              {"self_attn.k_proj", config.key_width(), config.qkv_bias},
                              {"self_attn.v_proj", config.key_width(), config.qkv_bias}}));
    sites.push_back(
        MakeSite(layer, SiteKind::kAttentionOutput, config.query_width(),
                 {{"self_attn.o_proj", config.hidden_size, config.attention_output_bias}}));
    sites.push_back(MakeSite(layer, SiteKind::kMlpInput, config.hidden_size,
                             {{"mlp.gate_proj", config.intermediate_size, config.mlp_bias},
                              {"mlp.up_proj", config.intermediate_size, config.mlp_bias}}));
    sites.push_back(MakeSite(layer, SiteKind::kMlpOutput, config.intermediate_size,
                             {{"mlp.down_proj", config.hidden_size, config.mlp_bias}}));
  }
  return sites;
}

}  // namespace ultrasketch
