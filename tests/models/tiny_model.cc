#include "tests/models/tiny_model.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "absl/strings/str_format.h"
#include "gtest/gtest.h"

#include "engine/base/random.h"
#include "engine/format/safetensors.h"

namespace ultrasketch {
namespace {

std::vector<uint8_t> StoredBytes(const TinyTensor& tensor) {
  std::vector<uint8_t> bytes;
  for (const float value : tensor.values) {
    uint8_t element[4];
    const int size = ElementBytes(tensor.dtype);
    if (tensor.dtype == DType::kF32) {
      std::memcpy(element, &value, 4);
    } else {
      const uint16_t bits = tensor.dtype == DType::kF16 ? FloatToHalf(value) : FloatToBf16(value);
      std::memcpy(element, &bits, 2);
    }
    bytes.insert(bytes.end(), element, element + size);
  }
  return bytes;
}

void WriteText(const std::filesystem::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  EXPECT_TRUE(out.good()) << path;
}

class Maker {
 public:
  Maker(TinyModel& model, const std::vector<DType>& dtypes, uint64_t seed)
      : model_(model), dtypes_(dtypes), seed_(seed) {}

  void Add(const std::string& name, std::vector<int64_t> shape, double mean, double deviation) {
    TinyTensor& tensor = model_.tensors[name];
    tensor.dtype = dtypes_[count_++ % dtypes_.size()];
    tensor.shape = std::move(shape);
    int64_t size = 1;
    for (const int64_t extent : tensor.shape) size *= extent;
    for (int64_t i = 0; i < size; ++i) {
      tensor.values.push_back(static_cast<float>(
          mean + deviation * NormalDouble(seed_, count_, static_cast<uint64_t>(i))));
    }
    tensor.values = RoundTo(tensor.dtype, std::move(tensor.values));
  }

  void AddLinear(const std::string& name, int64_t rows, int64_t cols, bool has_bias) {
    Add(name + ".weight", {rows, cols}, 0, 1.3 / std::sqrt(static_cast<double>(cols)));
    if (has_bias) Add(name + ".bias", {rows}, 0, 0.7);
  }

 private:
  TinyModel& model_;
  const std::vector<DType>& dtypes_;
  uint64_t seed_;
  size_t count_ = 0;
};

}  // namespace

ModelConfig TinyModel::Parsed() const {
  const auto parsed = ParseModelConfig(config, "config.json");
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return *parsed;
}

void TinyModel::Write(const std::string& folder, int num_shards) const {
  std::filesystem::create_directories(folder);
  WriteText(std::filesystem::path(folder) / "config.json", config.dump(1));
  std::vector<std::vector<uint8_t>> bytes;
  std::vector<std::vector<TensorToWrite>> shards(static_cast<size_t>(num_shards));
  nlohmann::json weight_map;
  const auto shard_name = [&](size_t shard) {
    return num_shards == 1
               ? std::string("model.safetensors")
               : absl::StrFormat("model-%05d-of-%05d.safetensors", shard + 1, num_shards);
  };
  bytes.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const size_t shard = bytes.size() % shards.size();
    bytes.push_back(StoredBytes(tensor));
    shards[shard].emplace_back(name, TensorView{tensor.dtype, tensor.shape, bytes.back().data()});
    weight_map[name] = shard_name(shard);
  }
  for (const auto& site : sites) {
    for (const NamedTensor& tensor : site->StoredTensors()) {
      shards[0].emplace_back(tensor.name, tensor.view);
      weight_map[tensor.name] = shard_name(0);
    }
  }
  for (size_t shard = 0; shard < shards.size(); ++shard) {
    const absl::Status status = WriteSafetensors(
        (std::filesystem::path(folder) / shard_name(shard)).string(), shards[shard]);
    ASSERT_TRUE(status.ok()) << status;
  }
  if (num_shards > 1) {
    const nlohmann::json index = {{"metadata", nlohmann::json::object()},
                                  {"weight_map", weight_map}};
    WriteText(std::filesystem::path(folder) / "model.safetensors.index.json", index.dump(1));
  }
}

nlohmann::json TinyConfig() {
  return {{"model_type", "llama"},
          {"vocab_size", 61},
          {"hidden_size", 40},
          {"intermediate_size", 56},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"max_position_embeddings", 512},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"tie_word_embeddings", true},
          {"eos_token_id", 2},
          {"bos_token_id", 1}};
}

TinyModel MakeTinyModel(const nlohmann::json& config, const std::vector<DType>& dtypes,
                        uint64_t seed) {
  TinyModel model;
  model.config = config;
  const ModelConfig parsed = model.Parsed();
  Maker maker(model, dtypes, seed);
  maker.Add("model.embed_tokens.weight", {parsed.vocab_size, parsed.hidden_size}, 0, 1);
  for (int layer = 0; layer < parsed.num_layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    maker.Add(prefix + "input_layernorm.weight", {parsed.hidden_size}, 1, 0.2);
    maker.Add(prefix + "post_attention_layernorm.weight", {parsed.hidden_size}, 1, 0.2);
    const std::string attention = prefix + "self_attn.";
    if (parsed.head_norms) {
      maker.Add(attention + "q_norm.weight", {parsed.head_dim}, 1, 0.2);
      maker.Add(attention + "k_norm.weight", {parsed.head_dim}, 1, 0.2);
    }
    const int64_t hidden = parsed.hidden_size;
    maker.AddLinear(attention + "q_proj", parsed.query_width(), hidden, parsed.qkv_bias);
    maker.AddLinear(attention + "k_proj", parsed.key_width(), hidden, parsed.qkv_bias);
    maker.AddLinear(attention + "v_proj", parsed.key_width(), hidden, parsed.qkv_bias);
    maker.AddLinear(attention + "o_proj", hidden, parsed.query_width(),
                    parsed.attention_output_bias);
    maker.AddLinear(prefix + "mlp.gate_proj", parsed.intermediate_size, hidden, parsed.mlp_bias);
    maker.AddLinear(prefix + "mlp.up_proj", parsed.intermediate_size, hidden, parsed.mlp_bias);
    maker.AddLinear(prefix + "mlp.down_proj", hidden, parsed.intermediate_size, parsed.mlp_bias);
  }
  maker.Add("model.norm.weight", {parsed.hidden_size}, 1, 0.2);
  if (!parsed.tie_word_embeddings) {
    maker.Add("lm_head.weight", {parsed.vocab_size, parsed.hidden_size}, 0, 1);
  }
  return model;
}

std::vector<float> RoundTo(DType dtype, std::vector<float> values) {
  for (float& value : values) {
    if (dtype == DType::kF16) value = HalfToFloat(FloatToHalf(value));
    if (dtype == DType::kBF16) value = Bf16ToFloat(FloatToBf16(value));
  }
  return values;
}

ModelOptions SmallOptions() {
  ModelOptions options;
  options.max_step_tokens = 512;
  options.max_step_logits = 512;
  options.kv_cache_tokens = 2048;
  options.kv_cache_type = KvCacheType::kFp32;  // what is compared with knows no rounding
  return options;
}

std::unique_ptr<Model> MustLoadModel(const std::string& folder, int num_threads,
                                     const ModelOptions& options) {
  auto checkpoint = Checkpoint::Open(folder);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  auto backend = CreateBackend("cpu", {.num_threads = num_threads});
  EXPECT_TRUE(backend.ok()) << backend.status();
  auto model = LoadModel(*checkpoint, *backend, options);
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

std::vector<BlockId> ScatteredBlocks(BlockId first, int64_t count) {
  std::vector<BlockId> blocks;
  for (int64_t i = 0; i < count; i += 2) blocks.push_back(first + static_cast<BlockId>(i));
  for (int64_t i = count - 1; i >= 0; --i) {
    if (i % 2 != 0) blocks.push_back(first + static_cast<BlockId>(i));
  }
  return blocks;
}

std::vector<float> LogitsRow(Model& model, int64_t row) {
  std::vector<float> logits(static_cast<size_t>(model.config().vocab_size));
  const absl::Status status = model.CopyLogits(row, absl::MakeSpan(logits));
  EXPECT_TRUE(status.ok()) << status;
  return logits;
}

std::vector<std::vector<float>> AllLogits(Model& model, const std::vector<int32_t>& ids) {
  const auto count = static_cast<int64_t>(ids.size());
  const std::vector<BlockId> blocks =
      ScatteredBlocks(0, model.cache_layout().BlocksForTokens(count));
  const absl::Status status = model.Forward({{ids, 0, blocks, count}});
  EXPECT_TRUE(status.ok()) << status;
  std::vector<std::vector<float>> rows;
  for (int64_t row = 0; row < model.num_logits(); ++row) rows.push_back(LogitsRow(model, row));
  return rows;
}

std::vector<int32_t> RandomTokens(int64_t count, int32_t vocab_size, uint64_t seed) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<int32_t>(RandomWord(seed, 99, static_cast<uint64_t>(i)) %
                                       static_cast<uint64_t>(vocab_size)));
  }
  return ids;
}

}  // namespace ultrasketch
