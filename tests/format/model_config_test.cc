#include "engine/format/model_config.h"

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/format/json.h"
#include "tests/base/temporary_folder.h"

namespace ultrasketch {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

json Llama() {
  return json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "hidden_act": "silu",
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "tie_word_embeddings": true,
    "attention_bias": false, "mlp_bias": false, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "torch_dtype": "bfloat16", "rope_theta": 500000.0,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"}})");
}

json Mistral() {
  return json::parse(R"({
    "model_type": "mistral", "vocab_size": 32768, "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": null,
    "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2})");
}

json Qwen2() {
  return json::parse(R"({
    "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "sliding_window": 32768, "max_window_layers": 21,
    "use_sliding_window": false, "tie_word_embeddings": true, "eos_token_id": 151643,
    "bos_token_id": 151643})");
}

// As transformers 4 wrote Qwen3-0.6B's and transformers 5 writes SmolLM3-3B's.
json Qwen3() {
  return json::parse(R"({
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936,
    "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu",
    "attention_bias": false, "max_position_embeddings": 40960, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000, "rope_scaling": null, "sliding_window": null, "max_window_layers": 28,
    "use_sliding_window": false, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
    "eos_token_id": 151645, "bos_token_id": 151643})");
}

json SmolLm3() {
  return json::parse(R"({
    "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "vocab_size": 128256,
    "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
    "num_attention_heads": 16, "num_key_value_heads": 4, "hidden_act": "silu",
    "attention_bias": false, "mlp_bias": false, "max_position_embeddings": 65536,
    "no_rope_layer_interval": 4, "rms_norm_eps": 1e-06, "sliding_window": null,
    "rope_parameters": {"rope_theta": 5000000.0, "rope_type": "default"},
    "use_sliding_window": false, "tie_word_embeddings": true, "dtype": "bfloat16",
    "eos_token_id": 128012, "bos_token_id": null, "pad_token_id": 128004})");
}

ModelConfig MustParse(const json& config) {
  const auto parsed = ParseModelConfig(config, "config.json");
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.ok() ? *parsed : ModelConfig();
}

void ExpectError(const json& config, absl::StatusCode code, const std::vector<std::string>& parts) {
  const absl::Status status = ParseModelConfig(config, "a/config.json").status();
  EXPECT_EQ(status.code(), code) << status;
  const std::string message(status.message());
  EXPECT_THAT(message, HasSubstr("a/config.json: "));
  for (const std::string& part : parts) EXPECT_THAT(message, HasSubstr(part));
}

// `config` with one key changed is refused, by the name of the key.
void ExpectRefused(json config, const std::string& key, const json& value,
                   absl::StatusCode code = absl::StatusCode::kDataLoss,
                   const std::string& part = "") {
  config[key] = value;
  ExpectError(config, code, {key, part});
}

constexpr absl::StatusCode kUnimplemented = absl::StatusCode::kUnimplemented;

TEST(ModelConfigTest, ReadsLlama) {
  const ModelConfig config = MustParse(Llama());
  EXPECT_EQ(config.model_type, "llama");
  EXPECT_EQ(config.vocab_size, 128256);
  EXPECT_EQ(config.hidden_size, 2048);
  EXPECT_EQ(config.intermediate_size, 8192);
  EXPECT_EQ(config.num_layers, 16);
  EXPECT_EQ(config.num_attention_heads, 32);
  EXPECT_EQ(config.num_kv_heads, 8);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.max_position_embeddings, 131072);
  EXPECT_FLOAT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_FALSE(config.attention_output_bias);
  EXPECT_FALSE(config.mlp_bias);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(config.rope.type, RopeType::kLlama3);
  EXPECT_EQ(config.rope.theta, 500000);
  EXPECT_EQ(config.rope.factor, 32);
  EXPECT_EQ(config.rope.low_freq_factor, 1);
  EXPECT_EQ(config.rope.high_freq_factor, 4);
  EXPECT_EQ(config.rope.original_max_position_embeddings, 8192);
  EXPECT_EQ(config.bos_token_id, 128000);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(128001, 128008, 128009));
  EXPECT_EQ(config.dtype, "bfloat16");
  EXPECT_TRUE(config.quantization_config.is_null());
}

// The published sizes of these models.
TEST(ModelConfigTest, CountsParameters) {
  EXPECT_EQ(NumParameters(MustParse(Llama())), 1'235'814'400);    // Llama-3.2-1B
  EXPECT_EQ(NumParameters(MustParse(Mistral())), 7'248'023'552);  // Mistral-7B-v0.3
  EXPECT_EQ(NumParameters(MustParse(Qwen2())), 494'032'768);      // Qwen2-0.5B
  EXPECT_EQ(NumParameters(MustParse(Qwen3())), 596'049'920);      // Qwen3-0.6B
  EXPECT_EQ(NumParameters(MustParse(SmolLm3())), 3'075'098'624);  // SmolLM3-3B
  EXPECT_EQ(NumLinearWeights(MustParse(Llama())), 973'078'528);
  json biased = Llama();
  biased["attention_bias"] = true;
  biased["mlp_bias"] = true;
  EXPECT_EQ(NumParameters(MustParse(biased)),
            1'235'814'400 + 16 * (2048 + 2 * 512 + 2048 + 2 * 8192 + 2048));
}

TEST(ModelConfigTest, OldAndNewSpellingsAgree) {
  json new_spelling = Llama();
  new_spelling["rope_parameters"] = new_spelling["rope_scaling"];
  new_spelling["rope_parameters"]["rope_theta"] = 500000.0;
  new_spelling.erase("rope_scaling");
  new_spelling.erase("rope_theta");
  new_spelling["dtype"] = "bfloat16";
  new_spelling.erase("torch_dtype");
  const ModelConfig old_config = MustParse(Llama());
  const ModelConfig new_config = MustParse(new_spelling);
  EXPECT_EQ(new_config.dtype, old_config.dtype);
  EXPECT_EQ(new_config.rope.theta, old_config.rope.theta);
  EXPECT_EQ(RopeInverseFrequencies(new_config), RopeInverseFrequencies(old_config));

  json old_type = Llama();
  old_type["rope_scaling"] = {{"type", "linear"}, {"factor", 4.0}};
  EXPECT_EQ(MustParse(old_type).rope.type, RopeType::kLinear);
  EXPECT_EQ(MustParse(old_type).rope.factor, 4);
}

TEST(ModelConfigTest, AbsentKeysHaveTheDefaultsOfTransformers) {
  json config = Llama();
  for (const char* key :
       {"num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "max_position_embeddings",
        "tie_word_embeddings", "attention_bias", "mlp_bias", "bos_token_id", "eos_token_id",
        "torch_dtype", "rope_theta", "rope_scaling", "architectures"}) {
    config.erase(key);
  }
  for (const bool as_null : {false, true}) {
    if (as_null) {
      for (const char* key : {"num_key_value_heads", "head_dim", "rope_scaling", "bos_token_id",
                              "eos_token_id", "torch_dtype", "quantization_config"}) {
        config[key] = nullptr;
      }
    }
    const ModelConfig parsed = MustParse(config);
    EXPECT_EQ(parsed.num_kv_heads, 32);
    EXPECT_EQ(parsed.head_dim, 64);
    EXPECT_FLOAT_EQ(parsed.rms_norm_eps, 1e-6f);
    EXPECT_EQ(parsed.max_position_embeddings, 2048);
    EXPECT_FALSE(parsed.tie_word_embeddings);
    EXPECT_EQ(parsed.rope.type, RopeType::kDefault);
    EXPECT_EQ(parsed.rope.theta, 10000);
    EXPECT_FALSE(parsed.bos_token_id.has_value());
    EXPECT_THAT(parsed.eos_token_ids, IsEmpty());
    EXPECT_EQ(parsed.dtype, "");
    EXPECT_TRUE(parsed.quantization_config.is_null());
  }
}

TEST(ModelConfigTest, BiasesFollowTheFamily) {
  json llama = Llama();
  llama["attention_bias"] = true;
  EXPECT_TRUE(MustParse(llama).qkv_bias);
  EXPECT_TRUE(MustParse(llama).attention_output_bias);
  EXPECT_TRUE(MustParse(Qwen2()).qkv_bias);
  EXPECT_FALSE(MustParse(Qwen2()).attention_output_bias);
  EXPECT_FALSE(MustParse(Mistral()).qkv_bias);
}

TEST(ModelConfigTest, FamiliesWithoutBiasesDoNotObeyTheKeysOfOthers) {
  const auto with_biases = [](json config) {
    config["attention_bias"] = true;
    config["mlp_bias"] = true;
    return MustParse(config);
  };
  const ModelConfig mistral = with_biases(Mistral());
  EXPECT_FALSE(mistral.qkv_bias);
  EXPECT_FALSE(mistral.attention_output_bias);
  EXPECT_FALSE(mistral.mlp_bias);
  const ModelConfig qwen2 = with_biases(Qwen2());
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.attention_output_bias);
  EXPECT_FALSE(qwen2.mlp_bias);
  const ModelConfig qwen3 = with_biases(Qwen3());
  EXPECT_TRUE(qwen3.qkv_bias);
  EXPECT_TRUE(qwen3.attention_output_bias);
  EXPECT_FALSE(qwen3.mlp_bias);
  const ModelConfig smollm3 = with_biases(SmolLm3());
  EXPECT_TRUE(smollm3.qkv_bias);
  EXPECT_TRUE(smollm3.attention_output_bias);
  EXPECT_TRUE(smollm3.mlp_bias);
}

// As transformers does.
TEST(ModelConfigTest, Llama3RopeWithoutAnOriginalContextHasTheModels) {
  json config = Llama();
  config["rope_scaling"].erase("original_max_position_embeddings");
  EXPECT_EQ(MustParse(config).rope.original_max_position_embeddings, 131072);
}

TEST(ModelConfigTest, Qwen3NormalizesHeadsAndHasItsOwnDefaults) {
  json qwen3 = Qwen3();
  const ModelConfig config = MustParse(qwen3);
  EXPECT_TRUE(config.head_norms);
  EXPECT_FALSE(MustParse(Qwen2()).head_norms);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_EQ(config.query_width(), 2048);
  EXPECT_EQ(config.rope.theta, 1000000);
  for (const char* key : {"head_dim", "rope_theta", "tie_word_embeddings"}) qwen3.erase(key);
  const ModelConfig silent = MustParse(qwen3);
  EXPECT_EQ(silent.head_dim, 128);
  EXPECT_EQ(silent.rope.theta, 10000);
  EXPECT_FALSE(silent.tie_word_embeddings);
  qwen3["sliding_window"] = 4096;  // not used
  MustParse(qwen3);
  ExpectRefused(qwen3, "use_sliding_window", true, kUnimplemented);
}

TEST(ModelConfigTest, SmolLm3SaysWhichLayersHaveARotaryEmbedding) {
  const auto without_rope = [](const json& config) {
    const ModelConfig parsed = MustParse(config);
    std::vector<int> layers;
    for (int layer = 0; layer < parsed.num_layers; ++layer) {
      if (!parsed.has_rope(layer)) layers.push_back(layer);
    }
    return layers;
  };
  json config = SmolLm3();
  EXPECT_THAT(without_rope(config), ElementsAre(3, 7, 11, 15, 19, 23, 27, 31, 35));
  config["num_hidden_layers"] = 5;
  config["no_rope_layer_interval"] = 2;
  EXPECT_THAT(without_rope(config), ElementsAre(1, 3));
  config.erase("no_rope_layer_interval");
  EXPECT_THAT(without_rope(config), ElementsAre(3));
  // The list decides, in which 1 is a layer with one; it may be longer than the model.
  config["no_rope_layers"] = {0, 1, 1, 1, 0, 0, 0};
  EXPECT_THAT(without_rope(config), ElementsAre(0, 4));
  EXPECT_THAT(without_rope(Llama()), IsEmpty());

  constexpr auto kDataLoss = absl::StatusCode::kDataLoss;
  ExpectRefused(config, "no_rope_layers", {1, 1, 1, 0}, kDataLoss, "at least 5");
  ExpectRefused(config, "no_rope_layers", {1, 1, 2, 0, 1}, kDataLoss, "0 and 1");
  ExpectRefused(config, "no_rope_layers", "all", kDataLoss, "\"all\"");
  ExpectRefused(config, "no_rope_layer_interval", 0, kDataLoss);
  for (const char* key : {"tie_word_embeddings", "rope_parameters"}) config.erase(key);
  EXPECT_TRUE(MustParse(config).tie_word_embeddings);
  EXPECT_EQ(MustParse(config).rope.theta, 2000000);
}

TEST(ModelConfigTest, HeadDimIsExplicitOrDerived) {
  EXPECT_EQ(MustParse(Mistral()).head_dim, 128);
  json nemo = Mistral();
  nemo["hidden_size"] = 5120;
  nemo["head_dim"] = 128;
  EXPECT_EQ(MustParse(nemo).query_width(), 4096);
  EXPECT_EQ(MustParse(nemo).key_width(), 1024);
  json indivisible = Mistral();
  indivisible["hidden_size"] = 4100;
  ExpectError(indivisible, absl::StatusCode::kDataLoss,
              {"hidden_size", "multiple of num_attention_heads, 32", "4100"});
}

TEST(ModelConfigTest, RefusesOtherFamiliesByName) {
  for (const char* name : {"gemma2", "mixtral", "phi3", "qwen3_moe", "LLAMA", ""}) {
    ExpectRefused(Llama(), "model_type", name, kUnimplemented, std::string("\"") + name + "\"");
  }
  json none = Llama();
  none.erase("model_type");
  ExpectError(none, absl::StatusCode::kDataLoss, {"model_type", "found nothing"});
  ExpectRefused(Llama(), "model_type", 7, absl::StatusCode::kDataLoss, "the number 7");
}

TEST(ModelConfigTest, RefusesUnsupportedFeaturesByName) {
  ExpectRefused(Llama(), "hidden_act", "gelu", kUnimplemented, "\"gelu\"");
  ExpectRefused(Llama(), "partial_rotary_factor", 0.5, kUnimplemented);
  ExpectRefused(Llama(), "num_local_experts", 8, kUnimplemented);
  ExpectRefused(Qwen2(), "num_experts", 60, kUnimplemented);
  ExpectRefused(Llama(), "architectures", {"LlamaForSequenceClassification"}, kUnimplemented);
  ExpectRefused(Qwen2(), "layer_types", std::vector<std::string>(24, "sliding_attention"),
                kUnimplemented, "\"sliding_attention\"");
  json full = Qwen2();
  full["layer_types"] = std::vector<std::string>(24, "full_attention");
  MustParse(full);
}

// As in transformers, whatever the family.
TEST(ModelConfigTest, RefusesLayerTypesThatAreNotOneALayer) {
  for (const size_t count : {0, 15, 17}) {
    ExpectRefused(Llama(), "layer_types", std::vector<std::string>(count, "full_attention"),
                  absl::StatusCode::kDataLoss,
                  absl::StrCat("16 elements, one a layer; it has ", count));
  }
}

TEST(ModelConfigTest, RefusesActiveSlidingWindows) {
  ExpectRefused(Mistral(), "sliding_window", 4096, kUnimplemented, "4096");
  json covering = Mistral();
  covering["sliding_window"] = 32768;
  MustParse(covering);
  // Mistral's default is a window of 4096.
  json absent = Mistral();
  absent.erase("sliding_window");
  ExpectError(absent, kUnimplemented, {"sliding_window", "4096"});
  absent["max_position_embeddings"] = 4096;
  MustParse(absent);
  ExpectRefused(Qwen2(), "use_sliding_window", true, kUnimplemented);
  ExpectRefused(Mistral(), "sliding_window", "wide", absl::StatusCode::kDataLoss, "\"wide\"");
}

TEST(ModelConfigTest, RefusesRopeTypesByName) {
  for (const char* type : {"yarn", "dynamic", "longrope", "su", "mrope"}) {
    json config = Llama();
    config["rope_scaling"]["rope_type"] = type;
    ExpectError(config, kUnimplemented,
                {"rope_scaling.rope_type", std::string("\"") + type + "\""});
    config["rope_scaling"] = {{"type", type}, {"factor", 2.0}};
    ExpectError(config, kUnimplemented, {"rope_scaling.type", type});
  }
  json by_layer = Llama();
  by_layer.erase("rope_scaling");
  by_layer["rope_parameters"] = {{"full_attention", {{"rope_theta", 1e4}}}};
  ExpectError(by_layer, kUnimplemented, {"rope_parameters.full_attention"});
  json partial = Llama();
  partial["rope_scaling"]["partial_rotary_factor"] = 0.25;
  ExpectError(partial, kUnimplemented, {"rope_scaling.partial_rotary_factor"});
}

TEST(ModelConfigTest, RejectsRopeParametersThatMakeNoSense) {
  const auto with = [](const char* key, const json& value) {
    json config = Llama();
    config["rope_scaling"][key] = value;
    return config;
  };
  const auto data_loss = absl::StatusCode::kDataLoss;
  ExpectError(with("factor", 0), data_loss, {"rope_scaling.factor", "the number 0"});
  ExpectError(with("factor", "32"), data_loss, {"rope_scaling.factor", "\"32\""});
  ExpectError(with("factor", nullptr), data_loss, {"rope_scaling.factor", "nothing"});
  ExpectError(with("low_freq_factor", 0), data_loss, {"rope_scaling.low_freq_factor"});
  ExpectError(with("high_freq_factor", 1.0), data_loss, {"rope_scaling.high_freq_factor"});
  ExpectError(with("original_max_position_embeddings", 8192.5), data_loss,
              {"rope_scaling.original_max_position_embeddings", "8192.5"});
  ExpectError(with("rope_type", 3), data_loss, {"rope_scaling.rope_type", "the number 3"});
  ExpectRefused(Llama(), "rope_scaling", "llama3", data_loss, "JSON object");
  ExpectRefused(Llama(), "rope_theta", 0, data_loss, "the number 0");
  ExpectRefused(Llama(), "rope_theta", -1e4, data_loss);
  ExpectRefused(Llama(), "rope_parameters", {{"rope_theta", 1.0}}, data_loss);
}

TEST(ModelConfigTest, RefusesOtherQuantizationMethodsByName) {
  for (const char* method : {"gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors"}) {
    ExpectRefused(Llama(), "quantization_config", {{"quant_method", method}, {"bits", 4}},
                  kUnimplemented, method);
  }
  ExpectRefused(Llama(), "quantization_config", {{"load_in_8bit", true}}, kUnimplemented);
  ExpectRefused(Llama(), "quantization_config", "gptq", absl::StatusCode::kDataLoss);
  ExpectRefused(Llama(), "compression_config", {{"format", "x"}}, kUnimplemented);
  json own = Llama();
  own["quantization_config"] = {{"quant_method", "ultrasketch"}, {"codec", "fold"}};
  EXPECT_EQ(MustParse(own).quantization_config["codec"], "fold");
  own["quantization_config"]["version"] = 1;
  MustParse(own);
  own["quantization_config"]["version"] = 2;
  ExpectError(own, kUnimplemented, {"quantization_config.version", "version 2"});
  own["quantization_config"]["version"] = "1";
  ExpectError(own, absl::StatusCode::kDataLoss, {"quantization_config.version", "\"1\""});
}

TEST(ModelConfigTest, RejectsExtentsThatMakeNoSense) {
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads"}) {
    json missing = Llama();
    missing.erase(key);
    ExpectError(missing, absl::StatusCode::kDataLoss, {key, "found nothing"});
  }
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"}) {
    for (const json& bad :
         {json(0), json(-1), json(1.5), json("32"), json(true), json::array(), json::object(),
          json(int64_t{1} << 62), json(~uint64_t{0}), json(1e300)}) {
      ExpectRefused(Llama(), key, bad);
    }
  }
  ExpectRefused(Llama(), "num_key_value_heads", 5, absl::StatusCode::kDataLoss, "divisor");
  ExpectRefused(Llama(), "num_key_value_heads", 64);
  ExpectRefused(Llama(), "head_dim", 63, absl::StatusCode::kDataLoss, "even");
  json odd = Llama();
  odd.erase("head_dim");
  odd["hidden_size"] = 32 * 63;
  ExpectError(odd, absl::StatusCode::kDataLoss, {"head_dim", "63"});
  json no_kv_heads = Mistral();
  no_kv_heads.erase("num_key_value_heads");
  ExpectError(no_kv_heads, absl::StatusCode::kDataLoss, {"num_key_value_heads", "nothing"});
}

TEST(ModelConfigTest, LargestExtentsDoNotOverflow) {
  json config = Llama();
  config["vocab_size"] = 2147483647;
  config["hidden_size"] = 1 << 20;
  config["intermediate_size"] = 1 << 22;
  config["num_hidden_layers"] = 1 << 12;
  config["num_attention_heads"] = config["num_key_value_heads"] = 1 << 14;
  config["head_dim"] = 1 << 12;
  config["tie_word_embeddings"] = false;
  const ModelConfig parsed = MustParse(config);
  EXPECT_GT(NumLinearWeights(parsed), int64_t{1} << 60);
  EXPECT_GT(NumParameters(parsed), NumLinearWeights(parsed));
}

TEST(ModelConfigTest, LeavesOutIdsThatAreNotInTheVocabulary) {
  json config = Llama();
  config["bos_token_id"] = 128256;
  config["eos_token_id"] = {-1, 128001, int64_t{1} << 40};
  config["pad_token_id"] = -1;
  std::vector<std::string> warnings;
  const auto parsed = ParseModelConfig(config, "a/config.json", &warnings);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_FALSE(parsed->bos_token_id.has_value());
  EXPECT_THAT(parsed->eos_token_ids, ElementsAre(128001));
  EXPECT_THAT(warnings, ElementsAre(AllOf(HasSubstr("a/config.json"), HasSubstr("bos_token_id"),
                                          HasSubstr("the number 128256")),
                                    AllOf(HasSubstr("eos_token_id"), HasSubstr("the number -1"),
                                          HasSubstr("1 more")),
                                    HasSubstr("pad_token_id")));
  config["eos_token_id"] = 128256;
  EXPECT_THAT(MustParse(config).eos_token_ids, IsEmpty());
}

TEST(ModelConfigTest, RejectsOtherValuesThatMakeNoSense) {
  ExpectRefused(Llama(), "rms_norm_eps", 0);
  ExpectRefused(Llama(), "rms_norm_eps", -1e-5);
  ExpectRefused(Llama(), "rms_norm_eps", "1e-5");
  ExpectRefused(Llama(), "tie_word_embeddings", 1);
  ExpectRefused(Llama(), "attention_bias", "no");
  ExpectRefused(Llama(), "eos_token_id", {1, "x"});
  ExpectRefused(Llama(), "bos_token_id", 1.5);
  ExpectRefused(Llama(), "torch_dtype", 16);
  ExpectRefused(Llama(), "architectures", "LlamaForCausalLM");
  ExpectRefused(Llama(), "layer_types", "full_attention");
  for (const json& bad : {json::array(), json(1), json("x"), json()}) {
    ExpectError(bad, absl::StatusCode::kDataLoss, {"JSON object"});
  }
}

TEST(RopeTest, DefaultFrequencies) {
  json config = Llama();
  config["head_dim"] = 128;
  config["rope_theta"] = 10000.0;
  config.erase("rope_scaling");
  const std::vector<float> frequencies = RopeInverseFrequencies(MustParse(config));
  ASSERT_EQ(frequencies.size(), 64u);
  EXPECT_EQ(frequencies[0], 1.0f);
  EXPECT_FLOAT_EQ(frequencies[1], 0.865964323f);
  EXPECT_FLOAT_EQ(frequencies[32], 0.01f);
  EXPECT_FLOAT_EQ(frequencies[63], 0.000115478198f);
}

TEST(RopeTest, LinearDividesEveryFrequency) {
  json config = Llama();
  config.erase("rope_scaling");
  const std::vector<float> plain = RopeInverseFrequencies(MustParse(config));
  config["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 4.0}};
  const std::vector<float> scaled = RopeInverseFrequencies(MustParse(config));
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_EQ(scaled[i], plain[i] / 4);
}

// Values of the formula in double precision, for Llama-3.2-1B's parameters.
TEST(RopeTest, Llama3KeepsRampsAndDivides) {
  const std::vector<float> frequencies = RopeInverseFrequencies(MustParse(Llama()));
  ASSERT_EQ(frequencies.size(), 32u);
  const std::vector<std::pair<size_t, double>> expected = {
      {0, 1},
      {1, 0.663601238},
      {8, 0.0376060309},
      {14, 0.00321144599},  // the last that is kept
      {15, 0.00129054793},
      {16, 0.000429556797},
      {17, 9.7082878e-05},
      {18, 1.94616382e-05},  // the first that is divided
      {24, 1.66196747e-06},
      {31, 9.41830673e-08}};
  for (const auto& [i, value] : expected) {
    EXPECT_NEAR(frequencies[i] / value, 1, 2e-6) << i;
  }
}

class GenerationConfigTest : public ::testing::Test {
 protected:
  GenerationConfig Parse(const json& config) {
    warnings_.clear();
    return ParseGenerationConfig(config, 10, "generation_config.json", warnings_);
  }
  GenerationConfig Read(const std::string& text) {
    warnings_.clear();
    return ReadGenerationConfig(folder_.Write("generation_config.json", text), 10, warnings_);
  }
  std::string path() const { return folder_.File("generation_config.json"); }

  const TemporaryFolder folder_;
  std::vector<std::string> warnings_;
};

TEST_F(GenerationConfigTest, ReadsWhatIsThere) {
  const GenerationConfig config =
      Parse(json::parse(R"({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 20,
                      "min_p": 0.05, "repetition_penalty": 1.1, "bos_token_id": 1,
                      "eos_token_id": [2, 3], "transformers_version": "4.45.0"})"));
  EXPECT_THAT(warnings_, IsEmpty());
  EXPECT_EQ(config.do_sample, true);
  EXPECT_EQ(config.temperature, 0.6f);
  EXPECT_EQ(config.top_p, 0.9f);
  EXPECT_EQ(config.top_k, 20);
  EXPECT_EQ(config.min_p, 0.05f);
  EXPECT_EQ(config.repetition_penalty, 1.1f);
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_THAT(config.eos_token_ids.value(), ElementsAre(2, 3));
}

TEST_F(GenerationConfigTest, AbsentAndNullAreUnset) {
  for (const char* text : {"{}", R"({"temperature": null, "eos_token_id": null, "top_k": null})",
                           R"({"eos_token_id": []})"}) {
    const GenerationConfig config = Parse(json::parse(text));
    EXPECT_THAT(warnings_, IsEmpty());
    EXPECT_FALSE(config.do_sample.has_value());
    EXPECT_FALSE(config.temperature.has_value());
    EXPECT_FALSE(config.top_k.has_value());
    EXPECT_FALSE(config.eos_token_ids.has_value());
  }
}

TEST_F(GenerationConfigTest, TakesTheRangesOfTransformers) {
  const GenerationConfig config = Parse(
      {{"temperature", 0}, {"top_p", 0}, {"top_k", -1}, {"min_p", 1}, {"repetition_penalty", 2.5}});
  EXPECT_THAT(warnings_, IsEmpty());
  EXPECT_EQ(config.temperature, 0.0f);
  EXPECT_EQ(config.top_p, 0.0f);
  EXPECT_EQ(config.top_k, 0);
  EXPECT_EQ(config.min_p, 1.0f);
  EXPECT_EQ(config.repetition_penalty, 2.5f);
  EXPECT_EQ(Parse({{"top_k", 0}}).top_k, 0);
  EXPECT_EQ(Parse({{"repetition_penalty", 100}}).repetition_penalty, 100.0f);
  EXPECT_THAT(warnings_, IsEmpty());
}

TEST_F(GenerationConfigTest, WhatCannotBeUsedIsWarnedAboutAndUnset) {
  const std::vector<std::pair<std::string, json>> cases = {{"temperature", -1},
                                                           {"temperature", "hot"},
                                                           {"temperature", 1e300},
                                                           {"top_p", 1.5},
                                                           {"top_p", -0.5},
                                                           {"top_p", "0.9"},
                                                           {"min_p", 2},
                                                           {"top_k", 1.5},
                                                           {"top_k", -2},
                                                           {"repetition_penalty", 0},
                                                           {"repetition_penalty", -1},
                                                           {"repetition_penalty", 1e-60},
                                                           {"bos_token_id", -1},
                                                           {"bos_token_id", "<s>"},
                                                           {"eos_token_id", 10},
                                                           {"eos_token_id", ~uint64_t{0}},
                                                           {"eos_token_id", json::object()},
                                                           {"do_sample", "yes"},
                                                           {"pad_token_id", -1}};
  for (const auto& [key, value] : cases) {
    SCOPED_TRACE(key + ": " + value.dump());
    const GenerationConfig config = Parse({{key, value}});
    EXPECT_THAT(warnings_, ElementsAre(AllOf(HasSubstr("generation_config.json"), HasSubstr(key),
                                             HasSubstr("not used"))));
    EXPECT_FALSE(config.temperature || config.top_p || config.min_p || config.top_k ||
                 config.repetition_penalty || config.bos_token_id || config.eos_token_ids ||
                 config.do_sample);
  }
}

TEST_F(GenerationConfigTest, OneWrongValueLeavesTheOthers) {
  const GenerationConfig config = Parse(
      {{"temperature", -1}, {"top_p", 0.5}, {"eos_token_id", {2, 10, -1, 3}}, {"top_k", "x"}});
  EXPECT_EQ(config.top_p, 0.5f);
  EXPECT_THAT(config.eos_token_ids.value(), ElementsAre(2, 3));
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("temperature"), HasSubstr("top_k"),
                                     AllOf(HasSubstr("eos_token_id"), HasSubstr("the number 10"),
                                           HasSubstr("1 more"))));
}

TEST_F(GenerationConfigTest, AFileThatIsNoObjectIsNotUsed) {
  for (const char* text : {"", "[]", "null", "7", "{\n \"top_p\": 0.5,\n}", "{\"a\": 1, \"a\": 2}",
                           "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"}) {
    SCOPED_TRACE(text);
    const GenerationConfig config = Read(text);
    EXPECT_THAT(warnings_, ElementsAre(AllOf(HasSubstr(path()), HasSubstr("not used"))));
    EXPECT_FALSE(config.top_p.has_value());
  }
  Read("{\n \"top_p\": 0.5,\n}");
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("line 3, column 1")));
  warnings_.clear();
  ReadGenerationConfig(folder_.path(), 10, warnings_);
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("found a folder")));
}

TEST_F(GenerationConfigTest, NumbersThatAreNotFiniteLeaveTheOthers) {
  const GenerationConfig config = Read(
      "{\n \"temperature\": NaN,\n \"top_p\": 0.5, \"note\": \"NaN \\\" Infinity\",\n"
      " \"top_k\": -Infinity,\n \"eos_token_id\": 4\n}");
  EXPECT_FALSE(config.temperature.has_value());
  EXPECT_FALSE(config.top_k.has_value());
  EXPECT_EQ(config.top_p, 0.5f);
  EXPECT_THAT(config.eos_token_ids.value(), ElementsAre(4));
  EXPECT_THAT(warnings_,
              ElementsAre(AllOf(HasSubstr(path()), HasSubstr("line 2"), HasSubstr("NaN")),
                          AllOf(HasSubstr("line 4"), HasSubstr("-Infinity"))));
}

}  // namespace
}  // namespace ultrasketch
