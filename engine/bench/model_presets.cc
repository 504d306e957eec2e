#include "engine/bench/model_presets.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "engine/base/status.h"

namespace ultrasketch {
namespace {

struct Preset {
  const char* name;
  int64_t vocab_size;
  int64_t hidden_size;
  int64_t intermediate_size;
  int num_layers;
  int num_heads;
  int num_kv_heads;
  int head_dim;
  int64_t max_position_embeddings;
  bool tied;
};

constexpr Preset kPresets[] = {
    {"llama-3.2-1b", 128256, 2048, 8192, 16, 32, 8, 64, 131072, true},
    {"llama-3.2-3b", 128256, 3072, 8192, 28, 24, 8, 128, 131072, true},
    {"llama-3.1-8b", 128256, 4096, 14336, 32, 32, 8, 128, 131072, false},
    {"tiny", 1024, 64, 176, 3, 4, 2, 16, 512, true},
};

}  // namespace

absl::StatusOr<nlohmann::ordered_json> PresetConfig(std::string_view name) {
  for (const Preset& preset : kPresets) {
    if (name != preset.name) continue;
    return nlohmann::ordered_json{
        {"architectures", {"LlamaForCausalLM"}},
        {"model_type", "llama"},
        {"vocab_size", preset.vocab_size},
        {"hidden_size", preset.hidden_size},
        {"intermediate_size", preset.intermediate_size},
        {"num_hidden_layers", preset.num_layers},
        {"num_attention_heads", preset.num_heads},
        {"num_key_value_heads", preset.num_kv_heads},
        {"head_dim", preset.head_dim},
        {"max_position_embeddings", preset.max_position_embeddings},
        {"rms_norm_eps", 1e-5},
        {"rope_theta", 500000.0},
        {"tie_word_embeddings", preset.tied},
        {"bos_token_id", 0},
        {"eos_token_id", 1},
        {"torch_dtype", "bfloat16"},
    };
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "preset: expected ", absl::StrJoin(PresetNames(), ", "), "; found ", Quoted(name)));
}

std::vector<std::string> PresetNames() {
  std::vector<std::string> names;
  for (const Preset& preset : kPresets) names.emplace_back(preset.name);
  return names;
}

}  // namespace ultrasketch
