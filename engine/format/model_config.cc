#include "engine/format/model_config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/check.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/format/config_reader.h"
#include "engine/format/families/family.h"
#include "engine/format/json.h"

namespace ultrasketch {
namespace {

using nlohmann::json;

// Bounds far beyond any model. Within them no product of extents overflows int64: the largest is
// kMaxLayers * kMaxHiddenSize * 4 * kMaxHeads * kMaxHeadDim = 2^60.
constexpr int64_t kMaxHiddenSize = 1 << 20;
constexpr int64_t kMaxIntermediateSize = 1 << 22;
constexpr int64_t kMaxHeads = 1 << 14;
constexpr int64_t kMaxHeadDim = 1 << 12;
constexpr int64_t kMaxPositions = 1 << 30;
constexpr int64_t kMaxVocabSize = std::numeric_limits<int32_t>::max();

constexpr double kMaxRopeTheta = 1e15;
constexpr double kMaxRopeFactor = 1e6;

constexpr int64_t kMaxConfigBytes = int64_t{16} << 20;

const Family* ReadFamily(ConfigReader& reader, ModelConfig& config) {
  const std::optional<std::string> model_type = reader.String("model_type");
  if (!model_type.has_value()) {
    reader.FailExpected("model_type", "the name of a family of models");
    return nullptr;
  }
  config.model_type = *model_type;
  const Family* const family = FindFamily(*model_type);
  if (family == nullptr) {
    reader.FailUnsupported("model_type",
                           absl::StrCat("the family ", Quoted(*model_type),
                                        " is not supported; supported are ", SupportedFamilies()));
  }
  return family;
}

// Features of these families that would change the computation.
void RefuseUnsupported(ConfigReader& reader, const Family& family, const ModelConfig& config) {
  if (const json* architectures = reader.Find("architectures")) {
    const auto generates = [](const json& name) {
      return name.is_string() && name.get_ref<const std::string&>().ends_with("ForCausalLM");
    };
    if (!architectures->is_array()) {
      reader.FailExpected("architectures", "an array");
    } else if (!architectures->empty() &&
               std::none_of(architectures->begin(), architectures->end(), generates)) {
      reader.FailUnsupported("architectures",
                             "only causal language models (\"...ForCausalLM\") are supported");
    }
  }
  const std::string activation = reader.String("hidden_act").value_or("silu");
  if (activation != "silu") {
    reader.FailUnsupported("hidden_act", absl::StrCat("the activation ", Quoted(activation),
                                                      " is not supported; only silu is"));
  }
  if (reader.Number("partial_rotary_factor", 0, 1).value_or(1) != 1) {
    reader.FailUnsupported("partial_rotary_factor",
                           "partial rotary embeddings are not supported; only 1 is");
  }
  for (const char* key : {"num_local_experts", "num_experts", "n_routed_experts"}) {
    if (reader.Integer(key, 0, std::numeric_limits<int32_t>::max()).value_or(0) > 0) {
      reader.FailUnsupported(key, "mixtures of experts are not supported");
    }
  }

  if (reader.Bool("use_sliding_window").value_or(false)) {
    reader.FailUnsupported("use_sliding_window", "sliding-window attention is not supported");
  }
  // The key's null means no window, and its absence the family's default.
  if (!family.switches_window) {
    int64_t window = reader.Integer("sliding_window", 1, int64_t{1} << 40).value_or(0);
    if (!reader.HasKey("sliding_window")) window = family.sliding_window;
    if (window > 0 && window < config.max_position_embeddings) {
      reader.FailUnsupported(
          "sliding_window",
          absl::StrCat("a sliding window of ", window, " tokens, less than the context of ",
                       config.max_position_embeddings, " (max_position_embeddings), is not ",
                       "supported"));
    }
  }
  if (const json* layer_types = reader.Find("layer_types")) {
    if (!layer_types->is_array()) {
      reader.FailExpected("layer_types", "an array");
    } else if (layer_types->size() != static_cast<size_t>(config.num_layers)) {
      reader.FailExpected("layer_types",
                          absl::StrCat("an array of ", config.num_layers,
                                       " elements, one a layer; it has ", layer_types->size()));
    } else {
      for (const json& type : *layer_types) {
        if (type == "full_attention") continue;
        reader.FailUnsupported("layer_types", absl::StrCat("only \"full_attention\" is supported, "
                                                           "found ",
                                                           DescribeJson(&type)));
      }
    }
  }
}

void ReadExtents(ConfigReader& reader, const Family& family, ModelConfig& config) {
  config.vocab_size = static_cast<int32_t>(reader.RequiredInteger("vocab_size", 1, kMaxVocabSize));
  config.hidden_size = reader.RequiredInteger("hidden_size", 1, kMaxHiddenSize);
  config.intermediate_size = reader.RequiredInteger("intermediate_size", 1, kMaxIntermediateSize);
  config.num_layers = static_cast<int>(reader.RequiredInteger("num_hidden_layers", 1, kMaxLayers));
  config.max_position_embeddings = reader.Integer("max_position_embeddings", 1, kMaxPositions)
                                       .value_or(family.max_position_embeddings);

  const int64_t heads = reader.RequiredInteger("num_attention_heads", 1, kMaxHeads);
  if (family.requires_kv_heads && !reader.HasKey("num_key_value_heads")) {
    reader.FailExpected("num_key_value_heads", absl::StrCat("an integer from 1 to ", heads));
  }
  const int64_t kv_heads = reader.Integer("num_key_value_heads", 1, heads).value_or(heads);
  if (heads % kv_heads != 0) {
    reader.FailExpected("num_key_value_heads",
                        absl::StrCat("a divisor of num_attention_heads, ", heads));
  }
  std::optional<int64_t> head_dim = reader.Integer("head_dim", 1, kMaxHeadDim);
  if (!head_dim.has_value() && family.head_dim > 0) head_dim = family.head_dim;
  if (!head_dim.has_value()) {
    head_dim = config.hidden_size / heads;
    if (config.hidden_size % heads != 0 || *head_dim > kMaxHeadDim) {
      reader.FailExpected("hidden_size",
                          absl::StrCat("a multiple of num_attention_heads, ", heads, ", at most ",
                                       kMaxHeadDim, " times it, as there is no head_dim"));
    }
  }
  if (*head_dim % 2 != 0) {
    reader.FailExpected("head_dim", absl::StrCat("an even number (rotary embeddings rotate pairs); "
                                                 "it is ",
                                                 *head_dim));
  }
  config.num_attention_heads = static_cast<int>(heads);
  config.num_kv_heads = static_cast<int>(kv_heads);
  config.head_dim = static_cast<int>(*head_dim);
}

// `type` and the parameters of it in `reader`, an object of rope parameters in either spelling.
void ReadRopeParameters(ConfigReader& reader, int64_t max_position_embeddings, RopeConfig& rope) {
  for (const std::string_view key : {"full_attention", "sliding_attention"}) {
    if (reader.Find(key) != nullptr) {
      reader.FailUnsupported(key, "rotary embeddings that differ by layer are not supported");
    }
  }
  rope.theta = reader.Number("rope_theta", 1, kMaxRopeTheta).value_or(rope.theta);
  if (reader.Number("partial_rotary_factor", 0, 1).value_or(1) != 1) {
    reader.FailUnsupported("partial_rotary_factor",
                           "partial rotary embeddings are not supported; only 1 is");
  }
  const char* const type_key = reader.Find("rope_type") != nullptr ? "rope_type" : "type";
  const std::string type = reader.String(type_key).value_or("default");
  if (type == "default") {
    rope.type = RopeType::kDefault;
  } else if (type == "linear") {
    rope.type = RopeType::kLinear;
    rope.factor = reader.RequiredNumber("factor", 1, kMaxRopeFactor);
  } else if (type == "llama3") {
    rope.type = RopeType::kLlama3;
    rope.factor = reader.RequiredNumber("factor", 1, kMaxRopeFactor);
    rope.low_freq_factor = reader.RequiredNumber("low_freq_factor", 1e-6, kMaxRopeFactor);
    rope.high_freq_factor = reader.RequiredNumber("high_freq_factor", 1e-6, kMaxRopeFactor);
    rope.original_max_position_embeddings =
        reader.Integer("original_max_position_embeddings", 1, kMaxPositions)
            .value_or(max_position_embeddings);
    if (!(rope.high_freq_factor > rope.low_freq_factor)) {
      reader.FailExpected("high_freq_factor",
                          absl::StrCat("more than low_freq_factor, ", rope.low_freq_factor));
    }
  } else {
    reader.FailUnsupported(type_key, absl::StrCat("the rope type ", Quoted(type),
                                                  " is not supported; supported are default, "
                                                  "linear and llama3"));
  }
}

void ReadRope(ConfigReader& reader, std::string_view description, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  rope.theta = reader.Number("rope_theta", 1, kMaxRopeTheta).value_or(rope.theta);
  const json* old_spelling = reader.Find("rope_scaling");
  const json* new_spelling = reader.Find("rope_parameters");
  if (old_spelling != nullptr && new_spelling != nullptr && *old_spelling != *new_spelling) {
    reader.FailExpected("rope_scaling", "nothing that differs from rope_parameters");
  }
  const json* parameters = new_spelling != nullptr ? new_spelling : old_spelling;
  if (parameters == nullptr) return;
  ConfigReader parameters_reader(*parameters, description,
                                 new_spelling != nullptr ? "rope_parameters." : "rope_scaling.");
  ReadRopeParameters(parameters_reader, config.max_position_embeddings, rope);
  reader.Adopt(parameters_reader.status());
}

void ReadQuantization(ConfigReader& reader, std::string_view description, ModelConfig& config) {
  if (reader.Find("compression_config") != nullptr) {
    reader.FailUnsupported("compression_config", "compressed-tensors models are not supported");
  }
  const json* quantization = reader.Find("quantization_config");
  if (quantization == nullptr) return;
  ConfigReader quantization_reader(*quantization, description, "quantization_config.");
  const std::string method =
      quantization_reader.String("quant_method").value_or("one without a name");
  if (method != kQuantMethod) {
    quantization_reader.FailUnsupported(
        "quant_method", absl::StrCat("the method ", Quoted(method), " is not supported; only ",
                                     A(kQuantMethod), " is"));
  }
  const int64_t version =
      quantization_reader.Integer("version", 1, std::numeric_limits<int32_t>::max())
          .value_or(kQuantVersion);
  if (version != kQuantVersion) {
    quantization_reader.FailUnsupported(
        "version", absl::StrCat("version ", version, " of the format is not supported; only ",
                                kQuantVersion, " is"));
  }
  reader.Adopt(quantization_reader.status());
  config.quantization_config = *quantization;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(const json& json_config, std::string_view description,
                                             std::vector<std::string>* warnings) {
  ConfigReader reader(json_config, description);
  US_RETURN_IF_ERROR(reader.status());
  ModelConfig config;
  const Family* family = ReadFamily(reader, config);
  if (family == nullptr) return reader.status();

  ReadExtents(reader, *family, config);
  RefuseUnsupported(reader, *family, config);
  config.rope.theta = family->rope_theta;
  ReadRope(reader, description, config);
  ReadQuantization(reader, description, config);

  config.rms_norm_eps =
      static_cast<float>(reader.Number("rms_norm_eps", 1e-12, 1).value_or(config.rms_norm_eps));
  const bool attention_bias = reader.Bool("attention_bias").value_or(false);
  config.qkv_bias = attention_bias && family->obeys_attention_bias;
  config.attention_output_bias = attention_bias && family->obeys_attention_bias;
  config.mlp_bias = reader.Bool("mlp_bias").value_or(false) && family->obeys_mlp_bias;
  config.tie_word_embeddings =
      reader.Bool("tie_word_embeddings").value_or(family->tie_word_embeddings);
  if (family->read != nullptr) family->read(reader, config);

  config.dtype = reader.String("dtype").value_or(reader.String("torch_dtype").value_or(""));
  std::vector<std::string> found;
  const auto bos_ids = reader.TokenIds("bos_token_id", config.vocab_size, found);
  if (bos_ids.has_value()) config.bos_token_id = bos_ids->front();
  config.eos_token_ids =
      reader.TokenIds("eos_token_id", config.vocab_size, found).value_or(std::vector<int32_t>());
  reader.TokenIds("pad_token_id", config.vocab_size, found);  // not needed, but as wrong
  US_RETURN_IF_ERROR(reader.status());
  if (warnings != nullptr) warnings->insert(warnings->end(), found.begin(), found.end());
  return config;
}

absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& path,
                                            std::vector<std::string>* warnings) {
  US_ASSIGN_OR_RETURN(const json config, ReadJsonFile(path, kMaxConfigBytes));
  return ParseModelConfig(config, path, warnings);
}

GenerationConfig ParseGenerationConfig(const json& json_config, int32_t vocab_size,
                                       std::string_view description,
                                       std::vector<std::string>& warnings) {
  constexpr double kMaxFloat = std::numeric_limits<float>::max();
  // The least above 0 that a float holds in full.
  constexpr double kLeastPositive = std::numeric_limits<float>::min();
  GenerationConfig config;
  if (!json_config.is_object()) {
    warnings.push_back(absl::StrCat(A(description), ": expected a JSON object, found ",
                                    DescribeJson(&json_config), "; it is not used"));
    return config;
  }
  // A reader for each key: what is wrong with one says nothing about the others.
  const auto read = [&](const auto& member) {
    ConfigReader reader(json_config, description);
    auto value = member(reader);
    if (!reader.status().ok()) {
      warnings.push_back(absl::StrCat(reader.status().message(), "; it is not used"));
    }
    return value;
  };
  const auto number = [&](std::string_view key, double least, double most) {
    return read([&](ConfigReader& reader) { return reader.Number(key, least, most); });
  };
  config.do_sample = read([](ConfigReader& reader) { return reader.Bool("do_sample"); });
  config.temperature = number("temperature", 0, kMaxFloat);
  // Some files say -1 for "all", which is 0 here.
  const std::optional<int64_t> top_k = read([](ConfigReader& reader) {
    return reader.Integer("top_k", -1, std::numeric_limits<int32_t>::max());
  });
  if (top_k.has_value()) config.top_k = static_cast<int32_t>(std::max<int64_t>(*top_k, 0));
  config.top_p = number("top_p", 0, 1);
  config.min_p = number("min_p", 0, 1);
  config.repetition_penalty = number("repetition_penalty", kLeastPositive, kMaxFloat);
  const auto token_ids = [&](std::string_view key) {
    return read([&](ConfigReader& reader) { return reader.TokenIds(key, vocab_size, warnings); });
  };
  const auto bos_ids = token_ids("bos_token_id");
  if (bos_ids.has_value()) config.bos_token_id = bos_ids->front();
  config.eos_token_ids = token_ids("eos_token_id");
  token_ids("pad_token_id");  // not needed, but as wrong
  return config;
}

GenerationConfig ReadGenerationConfig(const std::string& path, int32_t vocab_size,
                                      std::vector<std::string>& warnings) {
  const auto not_used = [&](const absl::Status& status) {
    warnings.push_back(absl::StrCat(
        status.message(), "; the file is not used: what a request leaves unset is neutral"));
    return GenerationConfig();
  };
  const absl::StatusOr<std::string> text = ReadFile(path, kMaxConfigBytes);
  if (!text.ok()) return not_used(text.status());
  absl::StatusOr<json> config = ParseJson(*text, path);
  if (!config.ok()) {
    std::vector<NonFiniteLiteral> literals;
    const absl::Status status = config.status();
    config = ParseJson(ReplaceNonFiniteLiterals(*text, literals), path);
    if (!config.ok()) return not_used(status);
    for (const NonFiniteLiteral& literal : literals) {
      warnings.push_back(absl::StrCat(path, ": line ", literal.line, ": expected a value of JSON, ",
                                      "found ", A(literal.word), "; it is not used"));
    }
  }
  return ParseGenerationConfig(*config, vocab_size, path, warnings);
}

std::vector<float> RopeInverseFrequencies(const ModelConfig& config) {
  const RopeConfig& rope = config.rope;
  std::vector<float> frequencies(static_cast<size_t>(config.head_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.head_dim);
    // The power alone in double: correctly rounded, whatever the C library's float version does.
    const auto base = static_cast<float>(rope.theta);
    frequencies[i] = 1.0f / static_cast<float>(std::pow(double{base}, double{exponent}));
  }
  if (rope.type == RopeType::kDefault) return frequencies;
  const auto factor = static_cast<float>(rope.factor);
  if (rope.type == RopeType::kLinear) {
    for (float& frequency : frequencies) frequency /= factor;
    return frequencies;
  }
  US_CHECK(rope.type == RopeType::kLlama3);
  const auto context = static_cast<double>(rope.original_max_position_embeddings);
  const auto longest_kept = static_cast<float>(context / rope.high_freq_factor);
  const auto shortest_divided = static_cast<float>(context / rope.low_freq_factor);
  const auto low = static_cast<float>(rope.low_freq_factor);
  const auto ramp = static_cast<float>(rope.high_freq_factor - rope.low_freq_factor);
  for (float& frequency : frequencies) {
    const float wavelength = static_cast<float>(2 * std::numbers::pi) / frequency;
    if (wavelength < longest_kept) continue;
    if (wavelength > shortest_divided) {
      frequency /= factor;
      continue;
    }
    const float kept = (static_cast<float>(context) / wavelength - low) / ramp;
    frequency = (1 - kept) * frequency / factor + kept * frequency;
  }
  return frequencies;
}

int64_t NumLinearWeights(const ModelConfig& config) {
  const int64_t attention =
      config.hidden_size * (2 * config.query_width() + 2 * config.key_width());
  const int64_t mlp = 3 * config.hidden_size * config.intermediate_size;
  return config.num_layers * (attention + mlp);
}

int64_t NumParameters(const ModelConfig& config) {
  int64_t layer = 2 * config.hidden_size + (config.head_norms ? 2 * config.head_dim : 0);  // norms
  if (config.qkv_bias) layer += config.query_width() + 2 * config.key_width();
  if (config.attention_output_bias) layer += config.hidden_size;
  if (config.mlp_bias) layer += 2 * config.intermediate_size + config.hidden_size;
  const int64_t table = config.vocab_size * config.hidden_size;
  return NumLinearWeights(config) + config.num_layers * layer + config.hidden_size +
         (config.tie_word_embeddings ? table : 2 * table);
}

}  // namespace ultrasketch
