#include "engine/format/families/family.h"

namespace ultrasketch {

const Family kMistralFamily = {.model_type = "mistral",
                               .max_position_embeddings = 131072,
                               .requires_kv_heads = true,
                               .sliding_window = 4096};

}  // namespace ultrasketch
