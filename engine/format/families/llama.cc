#include "engine/format/families/family.h"

namespace ultrasketch {

const Family kLlamaFamily = {.model_type = "llama",
                             .max_position_embeddings = 2048,
                             .requires_kv_heads = false,
                             .obeys_attention_bias = true,
                             .obeys_mlp_bias = true};

}  // namespace ultrasketch
