#include "engine/format/gguf/import_gguf.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/file.h"
#include "engine/format/checkpoint.h"
#include "engine/format/json.h"
#include "engine/format/tokenizer/tokenizer.h"
#include "tests/base/temporary_folder.h"
#include "tests/format/gguf/gguf_of_checkpoint.h"
#include "tests/format/gguf/gguf_writer.h"
#include "tests/format/gguf/tiny_llama.h"

namespace ultrasketch {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kF16 = 1;
constexpr uint32_t kQ4_0 = 2;
constexpr uint32_t kQ8_0 = 8;
constexpr uint32_t kQ8_K = 15;

std::shared_ptr<const Checkpoint> OpenCheckpoint(const std::string& folder) {
  auto checkpoint = Checkpoint::Open(folder);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return *checkpoint;
}

json ReadJson(const std::string& path) {
  auto value = ReadJsonFile(path);
  EXPECT_TRUE(value.ok()) << value.status();
  return *value;
}

class ImportGgufTest : public ::testing::Test {
 protected:
  absl::StatusOr<GgufImportReport> Import(const GgufWriter& writer,
                                          const GgufImportOptions& options = {}) {
    return ImportGguf(folder_.Write("model.gguf", writer.Write()), out_, options);
  }

  // The import fails with `code` and a message with all `parts`, and leaves nothing.
  void ExpectRefused(const GgufWriter& writer, const std::vector<std::string>& parts,
                     absl::StatusCode code = absl::StatusCode::kDataLoss,
                     const GgufImportOptions& options = {}) {
    const absl::Status status = Import(writer, options).status();
    EXPECT_EQ(status.code(), code) << status;
    const std::string message(status.message());
    EXPECT_THAT(message, HasSubstr("model.gguf"));
    for (const std::string& part : parts) EXPECT_THAT(message, HasSubstr(part));
    EXPECT_THAT(folder_.List(), ElementsAre("model.gguf"));
  }
  void ExpectUnsupported(const GgufWriter& writer, const std::vector<std::string>& parts) {
    ExpectRefused(writer, parts, absl::StatusCode::kUnimplemented);
  }

  void Clear() { std::filesystem::remove_all(out_); }

  const TemporaryFolder folder_;
  const std::string out_ = folder_.File("out");
};

// The imported tensors are those of the checkpoint: equal values, and with `dtype` equal bytes.
void ExpectSameTensors(const Checkpoint& imported, const Checkpoint& original, bool same_bytes) {
  ASSERT_EQ(imported.tensor_names(), original.tensor_names());
  for (const std::string& name : original.tensor_names()) {
    const TensorView& a = *imported.Find(name);
    const TensorView& b = *original.Find(name);
    ASSERT_EQ(a.shape, b.shape) << name;
    if (same_bytes) {
      ASSERT_EQ(a.dtype, b.dtype) << name;
      ASSERT_EQ(std::memcmp(a.data, b.data, static_cast<size_t>(a.num_bytes())), 0) << name;
    } else {
      ASSERT_EQ(ToFloatVector(a), ToFloatVector(b)) << name;
    }
  }
}

TEST_F(ImportGgufTest, ALlamaWithInterleavedRowsComesBackBitForBit) {
  const auto original = OpenCheckpoint(SAMPLE_MODEL_DIR);
  const json tokenizer = ReadJson(original->tokenizer_path());
  GgufWriter writer;
  AddModel(*original, writer);
  AddTokenizer(tokenizer, "smaug-bpe", writer);
  writer.Uint32("tokenizer.ggml.bos_token_id", 0);
  writer.Uint32("tokenizer.ggml.eos_token_id", 0);
  for (const bool as_stored : {true, false}) {
    Clear();
    GgufImportOptions options;
    if (!as_stored) options.conversion.dtype = DType::kBF16;
    const auto report = Import(writer, options);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->architecture, "llama");
    EXPECT_EQ(report->dtype, "bfloat16");
    EXPECT_EQ(report->parameters, NumParameters(original->config()));
    const auto imported = OpenCheckpoint(out_);
    EXPECT_EQ(report->bytes, imported->file_bytes());
    ExpectSameTensors(*imported, *original, /*same_bytes=*/!as_stored);
  }
  const auto imported = OpenCheckpoint(out_);
  const ModelConfig& a = imported->config();
  const ModelConfig& b = original->config();
  EXPECT_EQ(a.rms_norm_eps, b.rms_norm_eps);
  EXPECT_EQ(a.rope.theta, b.rope.theta);
  EXPECT_EQ(a.head_dim, b.head_dim);
  EXPECT_EQ(a.max_position_embeddings, b.max_position_embeddings);
  EXPECT_EQ(a.tie_word_embeddings, b.tie_word_embeddings);
  EXPECT_EQ(imported->eos_token_ids(), original->eos_token_ids());

  const auto ours = Tokenizer::Load(imported->tokenizer_path());
  const auto theirs = Tokenizer::Load(original->tokenizer_path());
  ASSERT_TRUE(ours.ok() && theirs.ok());
  for (const char* text :
       {"It was a dark night; 1234 \xe2\x80\x9cmiles\xe2\x80\x9d away.\n\n  He said",
        "<|endoftext|>caf\xc3\xa9", "", " "}) {
    EXPECT_EQ(*(*ours)->Encode(text), *(*theirs)->Encode(text)) << text;
  }
}

TEST_F(ImportGgufTest, Qwen2KeepsTheOrderOfRowsAndItsBiases) {
  const auto original = OpenCheckpoint(TEST_DATA_DIR "/models/qwen2");
  GgufWriter writer;
  AddModel(*original, writer);
  AddTokenizer(ReadJson(TEST_DATA_DIR "/tokenizer/qwen2.json"), "qwen2", writer);
  // The tokenizer's tokens are more than the tiny model's.
  writer.Strings("tokenizer.ggml.tokens", {"a", "b"});
  writer.Int32s("tokenizer.ggml.token_type", {1, 1});
  writer.Strings("tokenizer.ggml.merges", {});
  const auto report = Import(writer);
  ASSERT_TRUE(report.ok()) << report.status();
  const auto imported = OpenCheckpoint(out_);
  EXPECT_EQ(imported->config().model_type, "qwen2");
  EXPECT_TRUE(imported->config().qkv_bias);
  ExpectSameTensors(*imported, *original, /*same_bytes=*/false);
}

TEST_F(ImportGgufTest, NormsOfHeadsAndLayersWithoutRotaryEmbeddingAreKept) {
  for (const std::string name : {"qwen3", "smollm3"}) {
    Clear();
    const auto original = OpenCheckpoint(std::string(TEST_DATA_DIR "/models/") + name);
    GgufWriter writer;
    AddModel(*original, writer);
    AddTokenizer(json{{"added_tokens", json::array()},
                      {"model", {{"vocab", {{"a", 0}, {"b", 1}}}, {"merges", json::array()}}}},
                 name == "qwen3" ? "qwen2" : "smaug-bpe", writer);
    const auto report = Import(writer);
    ASSERT_TRUE(report.ok()) << report.status();
    const auto imported = OpenCheckpoint(out_);
    EXPECT_EQ(imported->config().model_type, name);
    EXPECT_EQ(imported->config().head_norms, original->config().head_norms);
    EXPECT_EQ(imported->config().rope_layers, original->config().rope_layers);
    EXPECT_EQ(imported->config().rope.theta, original->config().rope.theta);
    ExpectSameTensors(*imported, *original, /*same_bytes=*/false);
  }
}

TEST_F(ImportGgufTest, RotaryFactorsBecomeLlama3sParametersAgain) {
  const auto original = OpenCheckpoint(TEST_DATA_DIR "/models/llama3");
  ASSERT_EQ(original->config().rope.type, RopeType::kLlama3);
  GgufWriter writer;
  AddModel(*original, writer);
  AddTokenizer(json{{"added_tokens", json::array()},
                    {"model", {{"vocab", {{"a", 0}, {"b", 1}}}, {"merges", json::array()}}}},
               "llama-bpe", writer);
  writer.Uint32("tokenizer.ggml.bos_token_id", 1);
  const auto report = Import(writer);
  ASSERT_TRUE(report.ok()) << report.status();
  const auto imported = OpenCheckpoint(out_);
  EXPECT_EQ(imported->config().rope.type, RopeType::kLlama3);
  const std::vector<float> a = RopeInverseFrequencies(imported->config());
  const std::vector<float> b = RopeInverseFrequencies(original->config());
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 2e-4f * b[i]) << i;
  ExpectSameTensors(*imported, *original, /*same_bytes=*/false);
}

// Factors as llama.cpp's converter computes them for Llama 3.1 and for other parameters.
TEST_F(ImportGgufTest, Llama3sParametersAreFoundExactly) {
  for (const auto& [factor, high, context] : std::vector<std::tuple<double, double, int64_t>>{
           {8, 4, 8192}, {32, 4, 8192}, {4, 8, 2048}}) {
    Clear();
    TinyLlama writer;
    writer.Uint32("llama.attention.head_count", 2);
    writer.Uint32("llama.attention.key_length", 128);
    writer.Uint32("llama.attention.value_length", 128);
    writer.Float32("llama.rope.freq_base", 500000);
    writer.Replace("blk.0.attn_q.weight", kGgmlF32, {256, 32}, std::string(256 * 32 * 4, '\0'));
    writer.Replace("blk.0.attn_k.weight", kGgmlF32, {128, 32}, std::string(128 * 32 * 4, '\0'));
    writer.Replace("blk.0.attn_v.weight", kGgmlF32, {128, 32}, std::string(128 * 32 * 4, '\0'));
    writer.Replace("blk.0.attn_output.weight", kGgmlF32, {32, 256},
                   std::string(256 * 32 * 4, '\0'));
    std::vector<float> factors;
    for (int i = 0; i < 64; ++i) {
      const float frequency = 1 / std::pow(500000.0f, static_cast<float>(2 * i) / 128);
      const double wavelength = 2 * 3.14159265358979 / frequency;
      const auto length = static_cast<double>(context);
      double divisor = factor;
      if (wavelength < length / high) {
        divisor = 1;
      } else if (wavelength <= length) {
        const double smooth = (length / wavelength - 1) / (high - 1);
        divisor = 1 / ((1 - smooth) / factor + smooth);
      }
      factors.push_back(static_cast<float>(divisor));
    }
    writer.Tensor("rope_freqs.weight", kGgmlF32, {64}, Floats(factors));
    const auto report = Import(writer);
    ASSERT_TRUE(report.ok()) << report.status();
    const json scaling = ReadJson(out_ + "/config.json")["rope_scaling"];
    EXPECT_EQ(scaling["rope_type"], "llama3");
    EXPECT_EQ(scaling["factor"], factor);
    EXPECT_EQ(scaling["low_freq_factor"], 1);
    EXPECT_EQ(scaling["high_freq_factor"], high);
    EXPECT_EQ(scaling["original_max_position_embeddings"], context);
  }
}

TEST_F(ImportGgufTest, OtherRotaryFactorsAreRefused) {
  const auto with = [](const std::vector<float>& factors) {
    TinyLlama writer;
    writer.Tensor("rope_freqs.weight", kGgmlF32, {2}, Floats(factors));
    return writer;
  };
  ExpectUnsupported(with({1.7f, 40}), {"rope_freqs.weight", "llama3", "1.7", "40"});
  ExpectRefused(with({1, 0.5f}), {"rope_freqs.weight", "factors from 1", "found 0.5 at place 1"});
  ExpectRefused(with({1, std::numeric_limits<float>::quiet_NaN()}), {"found nan at place 1"});
  TinyLlama writer;
  writer.Tensor("rope_freqs.weight", kGgmlF32, {3}, Floats({1, 1, 1}));
  ExpectRefused(writer, {"rope_freqs.weight", "expected F32 [2], found F32 [3]"});
  // All equal: linear scaling; all 1: none.
  ASSERT_TRUE(Import(with({4, 4})).ok());
  EXPECT_EQ(ReadJson(out_ + "/config.json")["rope_scaling"],
            (json{{"rope_type", "linear"}, {"factor", 4}}));
  Clear();
  ASSERT_TRUE(Import(with({1, 1})).ok());
  EXPECT_TRUE(ReadJson(out_ + "/config.json")["rope_scaling"].is_null());
}

TEST_F(ImportGgufTest, LinearRotaryScalingIsKeptInBothSpellings) {
  for (const char* key : {"llama.rope.scaling.factor", "llama.rope.scale_linear"}) {
    Clear();
    TinyLlama writer;
    writer.Float32(key, 2.5f);
    ASSERT_TRUE(Import(writer).ok());
    const auto imported = OpenCheckpoint(out_);
    EXPECT_EQ(imported->config().rope.type, RopeType::kLinear);
    EXPECT_EQ(imported->config().rope.factor, 2.5);
  }
  Clear();
  TinyLlama writer;
  writer.String("llama.rope.scaling.type", "none");
  writer.Float32("llama.rope.scaling.factor", 2.5f);
  ASSERT_TRUE(Import(writer).ok());
  EXPECT_EQ(OpenCheckpoint(out_)->config().rope.type, RopeType::kDefault);
}

// Q8_0: d = 0.5, values i - 16 of each block; rows of q are told apart by d.
TEST_F(ImportGgufTest, QuantizedWeightsAreDecodedRowByRow) {
  TinyLlama writer;
  std::string blocks;
  for (int row = 0; row < 8; ++row) {
    blocks += GgufBytes().Number(FloatToHalf(static_cast<float>(row + 1))).bytes();
    for (int i = 0; i < 32; ++i) blocks.push_back(static_cast<char>(i - 16));
  }
  writer.Replace("blk.0.attn_q.weight", kQ8_0, {8, 32}, blocks);
  for (const std::optional<DType> dtype :
       {std::optional<DType>(), std::optional<DType>(DType::kF32),
        std::optional<DType>(DType::kBF16), std::optional<DType>(DType::kF16)}) {
    Clear();
    GgufImportOptions options;
    options.conversion.dtype = dtype;
    const auto report = Import(writer, options);
    ASSERT_TRUE(report.ok()) << report.status();
    const auto imported = OpenCheckpoint(out_);
    const TensorView& q = *imported->Find("model.layers.0.self_attn.q_proj.weight");
    EXPECT_EQ(q.dtype, dtype.value_or(DType::kF16));
    EXPECT_EQ(imported->Find("model.norm.weight")->dtype, dtype.value_or(DType::kF32));
    const std::vector<float> values = ToFloatVector(q);
    // Rows of each head: the first ones of the pairs, then the second ones.
    const int order[] = {0, 2, 1, 3, 4, 6, 5, 7};
    for (int row = 0; row < 8; ++row) {
      for (int i = 0; i < 32; ++i) {
        EXPECT_EQ(values[static_cast<size_t>(row * 32 + i)],
                  static_cast<float>((order[row] + 1) * (i - 16)));
      }
    }
  }
}

TEST_F(ImportGgufTest, AHeadOfItsOwnIsUntied) {
  TinyLlama writer;
  ASSERT_TRUE(Import(writer).ok());
  EXPECT_TRUE(OpenCheckpoint(out_)->config().tie_word_embeddings);
  Clear();
  writer.Tensor("output.weight", kF16, {8, 32}, std::string(512, '\x3c'));
  ASSERT_TRUE(Import(writer).ok());
  const auto imported = OpenCheckpoint(out_);
  EXPECT_FALSE(imported->config().tie_word_embeddings);
  EXPECT_EQ(imported->Find("lm_head.weight")->dtype, DType::kF16);
}

TEST_F(ImportGgufTest, BiasesOfALlamaAreInterleavedTooAndMissingOnesAreZero) {
  TinyLlama writer;
  writer.Tensor("blk.0.attn_q.bias", kGgmlF32, {8}, Floats({0, 1, 2, 3, 4, 5, 6, 7}));
  ASSERT_TRUE(Import(writer).ok());
  const auto imported = OpenCheckpoint(out_);
  EXPECT_TRUE(imported->config().attention_output_bias);
  EXPECT_THAT(ToFloatVector(*imported->Find("model.layers.0.self_attn.q_proj.bias")),
              ElementsAre(0, 2, 1, 3, 4, 6, 5, 7));
  EXPECT_EQ(ToFloatVector(*imported->Find("model.layers.0.self_attn.o_proj.bias")),
            std::vector<float>(32, 0.0f));
}

TEST_F(ImportGgufTest, SeveralFilesAreOneModel) {
  // The embedding in one file, the rest in the other.
  TinyLlama first;
  first.RemoveTensor("token_embd.weight");
  GgufWriter second;
  second.Tensor("token_embd.weight", kGgmlF32, {8, 32}, Floats(std::vector<float>(256, 0.5f)));
  const auto number = [](GgufWriter& writer, uint16_t no, int32_t tensors) {
    writer.Raw("split.no", GgufValueType::kUint16, GgufBytes().Number(no).bytes());
    writer.Raw("split.count", GgufValueType::kUint16, GgufBytes().Number<uint16_t>(2).bytes());
    writer.Raw("split.tensors.count", GgufValueType::kInt32, GgufBytes().Number(tensors).bytes());
  };
  number(first, 0, 11);
  number(second, 1, 11);
  const std::string path = folder_.Write("m-00001-of-00002.gguf", first.Write());
  const auto import_file = [&](const std::string& file) {
    return ImportGguf(file, out_, {}).status();
  };

  absl::Status status = import_file(path);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("m-00002-of-00002.gguf"));

  const std::string other = folder_.Write("m-00002-of-00002.gguf", second.Write());
  status = import_file(other);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("expected the first of the model's 2 files"));
  status = import_file(folder_.Write("renamed.gguf", first.Write()));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("-00001-of-00002.gguf"));

  status = import_file(path);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(OpenCheckpoint(out_)->config().vocab_size, 8);
  Clear();

  number(second, 0, 11);
  folder_.Write("m-00002-of-00002.gguf", second.Write());
  status = import_file(path);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("split.no"));
  number(second, 1, 11);
  second.Tensor("output_norm.weight", kGgmlF32, {32}, std::string(128, '\0'));
  folder_.Write("m-00002-of-00002.gguf", second.Write());
  status = import_file(path);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("\"output_norm.weight\" is in a file before"));
  number(first, 0, 12);
  second.RemoveTensor("output_norm.weight");
  folder_.Write("m-00002-of-00002.gguf", second.Write());
  folder_.Write("m-00001-of-00002.gguf", first.Write());
  status = import_file(path);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("split.tensors.count"));
}

TEST_F(ImportGgufTest, UnsupportedModelsAreRefusedByName) {
  TinyLlama writer;
  writer.String("general.architecture", "mamba");
  ExpectUnsupported(writer, {"general.architecture", "\"mamba\"", "llama, qwen2, qwen3, smollm3"});
  const auto with = [](const std::function<void(TinyLlama&)>& change) {
    TinyLlama changed;
    change(changed);
    return changed;
  };
  ExpectUnsupported(with([](auto& w) { w.Uint32("llama.expert_count", 8); }),
                    {"llama.expert_count", "mixtures of experts"});
  ExpectUnsupported(with([](auto& w) { w.Uint32("llama.attention.sliding_window", 64); }),
                    {"llama.attention.sliding_window", "64"});
  ExpectUnsupported(with([](auto& w) { w.Uint32("llama.rope.dimension_count", 2); }),
                    {"llama.rope.dimension_count", "rotating 2 of a head's 4"});
  ExpectUnsupported(with([](auto& w) { w.Uint32("llama.attention.value_length", 8); }),
                    {"llama.attention.value_length"});
  ExpectUnsupported(with([](auto& w) { w.Float32("llama.logit_scale", 0.25f); }),
                    {"llama.logit_scale", "0.25"});
  ExpectUnsupported(with([](auto& w) { w.String("llama.rope.scaling.type", "yarn"); }),
                    {"llama.rope.scaling.type", "yarn"});
  ExpectUnsupported(with([](auto& w) {
                      w.Int32s("llama.attention.head_count_kv", {1, 2});
                    }),
                    {"llama.attention.head_count_kv", "layers that differ"});
  ExpectUnsupported(with([](auto& w) { w.String("tokenizer.ggml.model", "bert"); }),
                    {"tokenizer.ggml.model", "\"bert\"", "gpt2 and llama"});
  ExpectUnsupported(with([](auto& w) { w.String("tokenizer.ggml.pre", "bloom"); }),
                    {"tokenizer.ggml.pre", "\"bloom\"", "llama-bpe"});
  ExpectUnsupported(with([](auto& w) {
                      w.Tensor("blk.0.attn_q_norm.weight", kGgmlF32, {4}, std::string(16, '\0'));
                    }),
                    {"blk.0.attn_q_norm.weight", "llama"});
  ExpectUnsupported(
      with([](auto& w) {
        w.Uint32("llama.feed_forward_length", 256);
        w.Replace("blk.0.ffn_up.weight", kGgmlF32, {256, 32}, std::string(256 * 128, 0));
        w.Replace("blk.0.ffn_gate.weight", kGgmlF32, {256, 32}, std::string(256 * 128, 0));
        w.Replace("blk.0.ffn_down.weight", kQ8_K, {32, 256}, std::string(32 * 292, 0));
      }),
      {"blk.0.ffn_down.weight", "Q8_K", "Q4_K"});
}

TEST_F(ImportGgufTest, WhatMakesNoSenseIsRefusedByKeyOrTensor) {
  const auto with = [](const std::function<void(TinyLlama&)>& change) {
    TinyLlama changed;
    change(changed);
    return changed;
  };
  for (const char* key :
       {"general.architecture", "llama.block_count", "llama.context_length",
        "llama.embedding_length", "llama.feed_forward_length", "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon", "tokenizer.ggml.model", "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges"}) {
    ExpectRefused(with([&](auto& w) { w.RemoveKey(key); }), {key, "found nothing"});
  }
  ExpectRefused(with([](auto& w) { w.Uint32("llama.block_count", 0); }),
                {"llama.block_count", "found 0"});
  ExpectRefused(with([](auto& w) { w.Uint32("llama.block_count", 5000); }),
                {"num_hidden_layers", "5000"});
  ExpectRefused(with([](auto& w) { w.Uint32("llama.block_count", 2); }),
                {"\"blk.1.attn_norm.weight\"", "expected one of [32], found none"});
  ExpectRefused(with([](auto& w) { w.RemoveTensor("token_embd.weight"); }),
                {"\"token_embd.weight\"", "found none"});
  ExpectRefused(with([](auto& w) { w.Uint32("llama.embedding_length", 64); }),
                {"\"token_embd.weight\"", "expected [8, 64], found [8, 32]"});
  ExpectRefused(with([](auto& w) { w.Uint32("llama.attention.head_count", 3); }),
                {"\"blk.0.attn_q.weight\"", "expected [12, 32], found [8, 32]"});
  ExpectRefused(with([](auto& w) {
                  w.RemoveKey("llama.attention.key_length");
                  w.Uint32("llama.attention.head_count", 3);
                }),
                {"llama.attention.head_count", "a divisor of embedding_length, 32"});
  ExpectRefused(with([](auto& w) {
                  std::vector<float> values(32, 1.0f);
                  values[7] = std::numeric_limits<float>::infinity();
                  w.Replace("output_norm.weight", kGgmlF32, {32}, Floats(values));
                }),
                {"\"output_norm.weight\"", "element 7", "found inf"});
  ExpectRefused(with([](auto& w) {
                  w.Replace("blk.0.attn_v.weight", kQ4_0, {4, 32},
                            GgufBytes().Number<uint16_t>(0x7e00).bytes() + std::string(70, '\0'));
                }),
                {"\"blk.0.attn_v.weight\"", "element 0", "found"});
}

TEST_F(ImportGgufTest, ValuesBeyondTheOutputTypeAreRefused) {
  TinyLlama writer(1e6f);
  GgufImportOptions options;
  options.conversion.dtype = DType::kF16;
  ExpectRefused(writer, {"\"token_embd.weight\"", "element 0", "1e+06", "F16"},
                absl::StatusCode::kOutOfRange, options);
  ASSERT_TRUE(Import(writer).ok());
}

TEST_F(ImportGgufTest, TheFolderAppearsWholeOrNotAtAll) {
  const TinyLlama writer;
  ASSERT_TRUE(Import(writer).ok());
  EXPECT_THAT(folder_.List(), ElementsAre("model.gguf", "out"));
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(out_)) {
    names.push_back(entry.path().filename().string());
  }
  EXPECT_THAT(names, ::testing::UnorderedElementsAre("config.json", "generation_config.json",
                                                     "tokenizer.json", "tokenizer_config.json",
                                                     "model.safetensors"));
  // What is there is left alone.
  EXPECT_EQ(Import(writer).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(Checkpoint::Open(out_).ok());
  // An empty folder is taken.
  Clear();
  std::filesystem::create_directory(out_);
  EXPECT_TRUE(Import(writer).ok());
  Clear();
  // Cancelled: nothing stays.
  std::atomic<bool> cancelled = true;
  GgufImportOptions options;
  options.conversion.cancelled = &cancelled;
  EXPECT_EQ(Import(writer, options).status().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(folder_.List(), ElementsAre("model.gguf"));
}

TEST_F(ImportGgufTest, ProgressCountsTheOutput) {
  std::vector<int64_t> done;
  int64_t total = 0;
  GgufImportOptions options;
  options.conversion.progress = [&](int64_t bytes_done, int64_t bytes_total) {
    done.push_back(bytes_done);
    total = bytes_total;
  };
  ASSERT_TRUE(Import(TinyLlama(), options).ok());
  ASSERT_FALSE(done.empty());
  EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
  EXPECT_EQ(done.back(), total);
  EXPECT_EQ(total, 4 * (8 * 32 + 3 * 32 + (8 + 4 + 4) * 32 + 32 * 8 + 3 * 64 * 32));
}

}  // namespace
}  // namespace ultrasketch
