#include "engine/format/families/family.h"

namespace ultrasketch {

// Queries, keys and values have biases, whatever attention_bias says.
const Family kQwen2Family = {
    .model_type = "qwen2",
    .max_position_embeddings = 32768,
    .requires_kv_heads = true,
    .switches_window = true,
    .read = [](ConfigReader& /*reader*/, ModelConfig& config) { config.qkv_bias = true; }};

}  // namespace ultrasketch
