#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

#include "engine/format/families/family.h"

namespace ultrasketch {
namespace {

constexpr int64_t kDefaultInterval = 4;

// Some layers have no rotary embedding: those that are 0 in no_rope_layers (1 means that a layer
// has one), or else every no_rope_layer_interval-th.
void ReadRopeLayers(ConfigReader& reader, ModelConfig& config) {
  const int64_t interval =
      reader.Integer("no_rope_layer_interval", 1, kMaxLayers).value_or(kDefaultInterval);
  const nlohmann::json* const listed = reader.Find("no_rope_layers");
  for (int layer = 0; layer < config.num_layers; ++layer) {
    config.rope_layers.push_back((layer + 1) % interval != 0);
  }
  if (listed == nullptr) return;
  const auto count = static_cast<size_t>(config.num_layers);
  if (!listed->is_array() || listed->size() < count) {
    reader.FailExpected("no_rope_layers",
                        absl::StrCat("an array of at least ", count, " numbers, one a layer"));
    return;
  }
  for (size_t layer = 0; layer < count; ++layer) {
    const nlohmann::json& has_rope = (*listed)[layer];
    if (has_rope != 0 && has_rope != 1) {
      reader.FailExpected("no_rope_layers", "an array of 0 and 1");
      return;
    }
    config.rope_layers[layer] = has_rope == 1;
  }
}

}  // namespace

const Family kSmolLm3Family = {.model_type = "smollm3",
                               .max_position_embeddings = 32768,
                               .requires_kv_heads = true,
                               .rope_theta = 2000000,
                               .tie_word_embeddings = true,
                               .obeys_attention_bias = true,
                               .obeys_mlp_bias = true,
                               .switches_window = true,
                               .read = ReadRopeLayers};

}  // namespace ultrasketch
