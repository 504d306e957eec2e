// The architecture of a decoder as its config.json describes it (Hugging Face's layout).
#ifndef ULTRASKETCH_ENGINE_FORMAT_MODEL_CONFIG_H_
#define ULTRASKETCH_ENGINE_FORMAT_MODEL_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace ultrasketch {

enum class RopeType : uint8_t {
  kDefault,
  kLinear,  // positions divided by `factor`
  kLlama3,  // low frequencies divided by `factor`, high ones kept, a ramp in between
};

// Rotary position embedding.
struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000;
  double factor = 1;                             // kLinear, kLlama3
  double low_freq_factor = 1;                    // kLlama3
  double high_freq_factor = 4;                   // kLlama3
  int64_t original_max_position_embeddings = 0;  // kLlama3
};

inline constexpr int64_t kMaxLayers = 1 << 12;  // far more than any model has

// Validated: extents are positive and so bounded that no product of them overflows int64;
// num_attention_heads is a multiple of num_kv_heads; head_dim is even.
struct ModelConfig {
  std::string model_type;  // a family's: see families/
  int32_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int num_layers = 0;
  int num_attention_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;  // of queries, keys and values; heads * head_dim may differ from hidden_size
  int64_t max_position_embeddings = 0;  // the context length, in tokens
  float rms_norm_eps = 1e-6f;
  bool qkv_bias = false;               // of q_proj, k_proj and v_proj
  bool attention_output_bias = false;  // of o_proj
  bool mlp_bias = false;               // of gate_proj, up_proj and down_proj
  bool head_norms = false;             // q_norm and k_norm: of each head's query and key
  bool tie_word_embeddings = false;    // the output head is the token embedding
  RopeConfig rope;
  std::vector<bool> rope_layers;  // by layer, whether it has a rotary embedding; empty: all have
  std::optional<int32_t> bos_token_id;
  std::vector<int32_t> eos_token_ids;
  std::string dtype;  // as written ("bfloat16"), "" when absent; the tensors' own types decide
  nlohmann::json quantization_config;  // null for an uncompressed model; else an object whose
                                       // quant_method is "ultrasketch"

  int64_t query_width() const { return int64_t{num_attention_heads} * head_dim; }
  int64_t key_width() const { return int64_t{num_kv_heads} * head_dim; }
  bool has_rope(int layer) const {
    return rope_layers.empty() || rope_layers[static_cast<size_t>(layer)];
  }
};

// The value of quant_method in models that this project compressed.
inline constexpr std::string_view kQuantMethod = "ultrasketch";

// The key in config.json, and in the metadata of a compressed model's weights, which has the same.
inline constexpr std::string_view kQuantizationKey = "quantization_config";

// The value of their `version`: how the tensors of all codecs are laid out. Other versions are
// refused.
inline constexpr int kQuantVersion = 1;

// Reads a parsed config.json; `description` (usually its path) starts every message. What is absent
// has the default that Hugging Face's transformers gives it for the family. Both spellings are
// read: `rope_theta` and `rope_scaling`, or `rope_parameters`; `torch_dtype` or `dtype`.
//
// DATA_LOSS, naming key, expected and found, for what makes no sense; UNIMPLEMENTED, by name, for
// what is sound but not supported: another family, activation, rope type or quantization method, an
// active sliding window, partial rotary embeddings, mixtures of experts. Ids of special tokens that
// are not in the vocabulary are left out; `warnings`, which may be null, gets a sentence about
// them.
absl::StatusOr<ModelConfig> ParseModelConfig(const nlohmann::json& config,
                                             std::string_view description,
                                             std::vector<std::string>* warnings = nullptr);

// ParseModelConfig of a file.
absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& path,
                                            std::vector<std::string>* warnings = nullptr);

// Defaults for sampling that come with a model: generation_config.json. What is unset is absent
// (or null) in the file, or cannot be used. Sampling accepts what is set.
struct GenerationConfig {
  std::optional<bool> do_sample;
  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<int32_t> bos_token_id;
  std::optional<std::vector<int32_t>> eos_token_ids;
};

// The file is advice: a value of the wrong type, out of the range that sampling accepts, or an id
// outside [0, vocab_size) is left unset, with a sentence in `warnings` that names key, expected and
// found.
GenerationConfig ParseGenerationConfig(const nlohmann::json& config, int32_t vocab_size,
                                       std::string_view description,
                                       std::vector<std::string>& warnings);

// ParseGenerationConfig of a file. One that cannot be read or is not JSON sets nothing and adds a
// warning; numbers that are not finite (which Python writes) are left out one by one.
GenerationConfig ReadGenerationConfig(const std::string& path, int32_t vocab_size,
                                      std::vector<std::string>& warnings);

// Angle per position of each rotated pair, [head_dim / 2], computed as transformers does (in
// float).
std::vector<float> RopeInverseFrequencies(const ModelConfig& config);

// Weights of the uncompressed model's linear layers, biases, embedding and output head excluded:
// the denominator of bits per weight (linear).
int64_t NumLinearWeights(const ModelConfig& config);

// All parameters of the uncompressed model, a tied head counted once: the denominator of bits per
// weight (file).
int64_t NumParameters(const ModelConfig& config);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_MODEL_CONFIG_H_
