#include "tests/format/gguf/gguf_of_checkpoint.h"

#include <cmath>
#include <map>
#include <numbers>

#include "absl/strings/str_cat.h"

#include "engine/base/check.h"
#include "engine/base/tensor.h"

namespace ultrasketch {
namespace {

constexpr uint32_t kF32 = 0;
constexpr uint32_t kF16 = 1;
constexpr uint32_t kBF16 = 30;

// [2, head_dim / 2] of each head to [head_dim / 2, 2].
std::string Interleave(const std::string& bytes, int64_t rows, int heads) {
  const size_t row_bytes = bytes.size() / static_cast<size_t>(rows);
  const int64_t head_rows = rows / heads;
  std::string result(bytes.size(), '\0');
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t head = row / head_rows;
    const int64_t half = row % head_rows / (head_rows / 2);
    const int64_t pair = row % (head_rows / 2);
    const int64_t target = head * head_rows + pair * 2 + half;
    result.replace(static_cast<size_t>(target) * row_bytes, row_bytes, bytes,
                   static_cast<size_t>(row) * row_bytes, row_bytes);
  }
  return result;
}

std::string Bytes(const TensorView& view) {
  return std::string(reinterpret_cast<const char*>(view.data),
                     static_cast<size_t>(view.num_bytes()));
}

// Adds `source` as `name`; its rows in rotated pairs when there are `heads`.
void AddTensor(const Checkpoint& checkpoint, const std::string& source, const std::string& name,
               int heads, GgufWriter& writer) {
  const TensorView* view = checkpoint.Find(source);
  if (view == nullptr) return;
  uint32_t type = view->dtype == DType::kBF16 ? kBF16 : view->dtype == DType::kF16 ? kF16 : kF32;
  std::string bytes = Bytes(*view);
  if (view->shape.size() == 1) {
    const std::vector<float> values = ToFloatVector(*view);
    bytes.assign(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    type = kF32;
  }
  if (heads > 0) bytes = Interleave(bytes, view->shape[0], heads);
  writer.Tensor(name, type, view->shape, std::move(bytes));
}

void AddRopeFactors(const ModelConfig& config, GgufWriter& writer) {
  const RopeConfig& rope = config.rope;
  std::string factors;
  for (int i = 0; i < config.head_dim / 2; ++i) {
    const double wavelength =
        2 * std::numbers::pi * std::pow(rope.theta, 2.0 * i / config.head_dim);
    const auto context = static_cast<double>(rope.original_max_position_embeddings);
    double factor = 1;
    if (wavelength > context / rope.low_freq_factor) {
      factor = rope.factor;
    } else if (wavelength >= context / rope.high_freq_factor) {
      const double kept = (context / wavelength - rope.low_freq_factor) /
                          (rope.high_freq_factor - rope.low_freq_factor);
      factor = 1 / ((1 - kept) / rope.factor + kept);
    }
    factors += GgufBytes().Number(static_cast<float>(factor)).bytes();
  }
  writer.Tensor("rope_freqs.weight", kF32, {config.head_dim / 2}, factors);
}

}  // namespace

void AddModel(const Checkpoint& checkpoint, GgufWriter& writer) {
  const ModelConfig& config = checkpoint.config();
  const std::string architecture = config.model_type == "mistral" ? "llama" : config.model_type;
  const bool is_qwen = architecture.starts_with("qwen");
  const auto number = [&](const char* key, int64_t value) {
    writer.Uint32(absl::StrCat(architecture, ".", key), static_cast<uint32_t>(value));
  };
  writer.String("general.architecture", architecture);
  number("block_count", config.num_layers);
  number("context_length", config.max_position_embeddings);
  number("embedding_length", config.hidden_size);
  number("feed_forward_length", config.intermediate_size);
  number("attention.head_count", config.num_attention_heads);
  number("attention.head_count_kv", config.num_kv_heads);
  number("attention.key_length", config.head_dim);
  number("attention.value_length", config.head_dim);
  number("rope.dimension_count", config.head_dim);
  writer.Float32(absl::StrCat(architecture, ".rope.freq_base"),
                 static_cast<float>(config.rope.theta));
  writer.Float32(absl::StrCat(architecture, ".attention.layer_norm_rms_epsilon"),
                 config.rms_norm_eps);
  if (config.rope.type == RopeType::kLinear) {
    writer.String(absl::StrCat(architecture, ".rope.scaling.type"), "linear");
    writer.Float32(absl::StrCat(architecture, ".rope.scaling.factor"),
                   static_cast<float>(config.rope.factor));
  }
  if (config.rope.type == RopeType::kLlama3) AddRopeFactors(config, writer);

  AddTensor(checkpoint, "model.embed_tokens.weight", "token_embd.weight", 0, writer);
  AddTensor(checkpoint, "model.norm.weight", "output_norm.weight", 0, writer);
  if (!config.tie_word_embeddings) {
    AddTensor(checkpoint, "lm_head.weight", "output.weight", 0, writer);
  }
  const std::map<std::string, std::string> names = {
      {"input_layernorm", "attn_norm"},    {"post_attention_layernorm", "ffn_norm"},
      {"self_attn.q_proj", "attn_q"},      {"self_attn.k_proj", "attn_k"},
      {"self_attn.q_norm", "attn_q_norm"}, {"self_attn.k_norm", "attn_k_norm"},
      {"self_attn.v_proj", "attn_v"},      {"self_attn.o_proj", "attn_output"},
      {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"}};
  for (int layer = 0; layer < config.num_layers; ++layer) {
    for (const auto& [source, name] : names) {
      const int heads = is_qwen            ? 0
                        : name == "attn_q" ? config.num_attention_heads
                        : name == "attn_k" ? config.num_kv_heads
                                           : 0;
      for (const char* kind : {".weight", ".bias"}) {
        AddTensor(checkpoint, absl::StrCat("model.layers.", layer, ".", source, kind),
                  absl::StrCat("blk.", layer, ".", name, kind), heads, writer);
      }
    }
  }
}

void AddTokenizer(const nlohmann::json& tokenizer, const std::string& pre, GgufWriter& writer) {
  const bool is_scored = pre.empty();
  writer.String("tokenizer.ggml.model", is_scored ? "llama" : "gpt2");
  writer.String("tokenizer.ggml.pre", is_scored ? "default" : pre);
  std::map<int64_t, std::string> by_id;
  for (const auto& [token, id] : tokenizer["model"]["vocab"].items()) by_id[id] = token;
  std::map<int64_t, int32_t> types;
  for (const auto& added : tokenizer["added_tokens"]) {
    by_id[added["id"]] = added["content"];
    types[added["id"]] = added["special"].get<bool>() ? 3 : 4;
  }
  std::vector<std::string> tokens;
  std::vector<int32_t> token_types;
  for (const auto& [id, token] : by_id) {
    US_CHECK(id == static_cast<int64_t>(tokens.size()));
    const bool is_byte = is_scored && token.size() == 6 && token.starts_with("<0x");
    tokens.push_back(token);
    token_types.push_back(is_byte ? 6 : types.contains(id) ? types[id] : 1);
  }
  std::vector<std::string> merges;
  std::map<std::string, float> scores;
  for (const auto& merge : tokenizer["model"]["merges"]) {
    std::string text = merge.is_string() ? merge.get<std::string>()
                                         : absl::StrCat(merge[0].get<std::string>(), " ",
                                                        merge[1].get<std::string>());
    merges.push_back(text);
    text.erase(text.find(' ', 1), 1);
    scores.emplace(text, -static_cast<float>(scores.size()));
  }
  writer.Strings("tokenizer.ggml.tokens", tokens);
  writer.Int32s("tokenizer.ggml.token_type", token_types);
  if (is_scored) {
    std::vector<float> values;
    for (const std::string& token : tokens) {
      values.push_back(scores.contains(token) ? scores[token] : -1e6f);
    }
    writer.Float32s("tokenizer.ggml.scores", values);
  } else {
    writer.Strings("tokenizer.ggml.merges", merges);
  }
}

}  // namespace ultrasketch
