#include "engine/format/families/family.h"

namespace ultrasketch {

// Queries and keys of each head are normalized.
const Family kQwen3Family = {
    .model_type = "qwen3",
    .max_position_embeddings = 32768,
    .requires_kv_heads = true,
    .head_dim = 128,
    .obeys_attention_bias = true,
    .switches_window = true,
    .read = [](ConfigReader& /*reader*/, ModelConfig& config) { config.head_norms = true; }};

}  // namespace ultrasketch
