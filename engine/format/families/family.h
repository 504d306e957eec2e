// The families of models that are supported: what transformers assumes where a config.json is
// silent, and what else is particular about each. A family is a file of this folder and a line of
// the registry; how its decoder is computed, ModelConfig says.
#ifndef ULTRASKETCH_ENGINE_FORMAT_FAMILIES_FAMILY_H_
#define ULTRASKETCH_ENGINE_FORMAT_FAMILIES_FAMILY_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "engine/format/config_reader.h"
#include "engine/format/model_config.h"

namespace ultrasketch {

struct Family {
  std::string_view model_type;
  int64_t max_position_embeddings;
  // Whether num_key_value_heads must be there, for transformers assumes a number that has to do
  // with one particular model. Otherwise there are as many as num_attention_heads.
  bool requires_kv_heads;
  int64_t head_dim = 0;  // 0: hidden_size / num_attention_heads
  double rope_theta = 10000;
  bool tie_word_embeddings = false;
  // Which keys about biases the family's decoder obeys; for the others it has none.
  bool obeys_attention_bias = false;
  bool obeys_mlp_bias = false;
  // Of those that have a window by its mere size; 0: none. Where `switches_window`, it is named
  // whether or not use_sliding_window says that there is one.
  int64_t sliding_window = 0;
  bool switches_window = false;
  // Sets what is particular, from keys of the family's own too. `config` has its extents and
  // its biases. Null: there is nothing.
  void (*read)(ConfigReader& reader, ModelConfig& config) = nullptr;
};

// Null when the family is not supported.
const Family* FindFamily(std::string_view model_type);
// "llama, mistral and qwen2"
std::string SupportedFamilies();

extern const Family kLlamaFamily;
extern const Family kMistralFamily;
extern const Family kQwen2Family;
extern const Family kQwen3Family;
extern const Family kSmolLm3Family;

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_FAMILIES_FAMILY_H_
