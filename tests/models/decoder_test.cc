// The decoder against a plain one in double precision, over the architectures that a config can
// describe.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "tests/base/temporary_folder.h"
#include "tests/models/reference_decoder.h"
#include "tests/models/tiny_model.h"

namespace ultrasketch {
namespace {

using nlohmann::json;

// Logits are a few units large; a wrong formula moves them by tenths.
constexpr double kTolerance = 5e-4;

constexpr int64_t kNumTokens = 70;

struct Variation {
  const char* name;
  const char* changes;  // of TinyConfig
  std::vector<DType> dtypes = {DType::kF32};
  int num_shards = 1;
};

void PrintTo(const Variation& variation, std::ostream* out) { *out << variation.name; }

TinyModel Make(const Variation& variation) {
  json config = TinyConfig();
  config.merge_patch(json::parse(variation.changes));
  return MakeTinyModel(config, variation.dtypes);
}

double LargestDifference(const std::vector<std::vector<float>>& found,
                         const std::vector<std::vector<double>>& expected) {
  EXPECT_EQ(found.size(), expected.size());
  double largest = 0;
  for (size_t row = 0; row < found.size(); ++row) {
    for (size_t i = 0; i < found[row].size(); ++i) {
      const double difference = std::fabs(double{found[row][i]} - expected[row][i]);
      if (!(difference <= largest)) largest = difference;  // keeps a NaN
    }
  }
  return largest;
}

class DecoderTest : public ::testing::TestWithParam<Variation> {};

TEST_P(DecoderTest, MatchesAPlainDecoder) {
  const TemporaryFolder folder;
  const TinyModel tiny = Make(GetParam());
  tiny.Write(folder.path(), GetParam().num_shards);
  const std::vector<int32_t> ids = RandomTokens(kNumTokens, tiny.Parsed().vocab_size, 1);
  const auto model = MustLoadModel(folder.path(), 2);
  EXPECT_LT(LargestDifference(AllLogits(*model, ids), ReferenceLogits(tiny, ids)), kTolerance);
}

INSTANTIATE_TEST_SUITE_P(
    Architectures, DecoderTest,
    ::testing::Values(
        Variation{"plain", R"({})"}, Variation{"bf16", R"({})", {DType::kBF16}},
        Variation{"f16", R"({})", {DType::kF16}},
        Variation{"mixed_types", R"({})", {DType::kBF16, DType::kF32, DType::kF16, DType::kF32}},
        Variation{"sharded", R"({"num_hidden_layers": 3})", {DType::kBF16, DType::kF32}, 4},
        Variation{"one_head_for_each_key", R"({"num_key_value_heads": 4})"},
        Variation{"one_key_for_all", R"({"num_key_value_heads": 1})"},
        Variation{"three_queries_a_key",
                  R"({"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8})"},
        Variation{"twenty_queries_a_key",
                  R"({"num_attention_heads": 20, "num_key_value_heads": 1, "head_dim": 2})"},
        Variation{"forty_queries_two_keys",
                  R"({"num_attention_heads": 40, "num_key_value_heads": 2, "head_dim": 4})"},
        Variation{"head_dim_48", R"({"head_dim": 48})"},
        Variation{"head_dim_64", R"({"head_dim": 64})"},
        Variation{"head_dim_80", R"({"head_dim": 80})"},
        Variation{"narrow_heads", R"({"head_dim": 6})"},
        Variation{"attention_bias", R"({"attention_bias": true})"},
        Variation{"mlp_bias", R"({"mlp_bias": true})"},
        Variation{"all_biases", R"({"attention_bias": true, "mlp_bias": true})", {DType::kBF16}},
        Variation{"untied", R"({"tie_word_embeddings": false})"},
        Variation{"theta", R"({"rope_theta": 500.0})"},
        Variation{"large_epsilon", R"({"rms_norm_eps": 0.5})"},
        Variation{"linear_rope", R"({"rope_scaling": {"rope_type": "linear", "factor": 4.0}})"},
        Variation{"llama3_rope",
                  R"({"head_dim": 32, "rope_theta": 5000.0,
                      "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
                                       "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                       "original_max_position_embeddings": 128}})"},
        Variation{"qwen2",
                  R"({"model_type": "qwen2", "rope_theta": 1000000.0,
                               "tie_word_embeddings": false})",
                  {DType::kBF16}},
        Variation{"qwen2_tied", R"({"model_type": "qwen2"})", {DType::kF16}},
        Variation{"qwen3",
                  R"({"model_type": "qwen3", "head_dim": 24, "rope_theta": 1000000.0})",
                  {DType::kBF16}},
        Variation{"qwen3_tied_with_biases",
                  R"({"model_type": "qwen3", "head_dim": 10, "attention_bias": true,
                      "tie_word_embeddings": true, "rms_norm_eps": 0.05})"},
        Variation{"smollm3",
                  R"({"model_type": "smollm3", "num_hidden_layers": 5, "rope_theta": 5000.0})",
                  {DType::kBF16, DType::kF32}},
        Variation{"smollm3_with_listed_layers",
                  R"({"model_type": "smollm3", "num_hidden_layers": 3, "head_dim": 16,
                      "no_rope_layers": [0, 1, 0], "attention_bias": true, "mlp_bias": true,
                      "tie_word_embeddings": false})"},
        Variation{"mistral", R"({"model_type": "mistral", "sliding_window": null,
                                 "head_dim": 16, "tie_word_embeddings": false})"},
        Variation{"wide",
                  R"({"hidden_size": 200, "intermediate_size": 333, "num_attention_heads": 5,
                      "num_key_value_heads": 5, "num_hidden_layers": 1, "vocab_size": 517})"}),
    [](const auto& variation) { return std::string(variation.param.name); });

// What the comparison above would not notice it would not test.
TEST(DecoderSensitivityTest, EveryFeatureMovesTheLogits) {
  const auto move = [](const char* with, const char* without) {
    json config = TinyConfig();
    config["head_dim"] = 32;
    config["rope_theta"] = 5000.0;
    config.merge_patch(json::parse(with));
    TinyModel tiny = MakeTinyModel(config, {DType::kF32});
    const std::vector<int32_t> ids = RandomTokens(kNumTokens, 61, 1);
    const auto expected = ReferenceLogits(tiny, ids);
    tiny.config.merge_patch(json::parse(without));
    for (auto tensor = tiny.tensors.begin(); tensor != tiny.tensors.end();) {
      const bool is_bias = tensor->first.ends_with(".bias");
      const bool drop = is_bias && tiny.config.contains("drop") &&
                        tensor->first.find(tiny.config["drop"]) != std::string::npos;
      tensor = drop ? tiny.tensors.erase(tensor) : std::next(tensor);
    }
    const auto changed = ReferenceLogits(tiny, ids);
    double largest = 0;
    for (size_t row = 0; row < changed.size(); ++row) {
      for (size_t i = 0; i < changed[row].size(); ++i) {
        largest = std::max(largest, std::fabs(changed[row][i] - expected[row][i]));
      }
    }
    return largest;
  };
  const char* const linear = R"({"rope_scaling": {"rope_type": "linear", "factor": 4.0}})";
  const char* const llama3 =
      R"({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                           "high_freq_factor": 4.0, "original_max_position_embeddings": 128}})";
  EXPECT_GT(move(linear, R"({"rope_scaling": null})"), 100 * kTolerance);
  EXPECT_GT(move(llama3, R"({"rope_scaling": null})"), 100 * kTolerance);
  EXPECT_GT(move(llama3, R"({"rope_scaling": {"low_freq_factor": 3.9}})"), 20 * kTolerance);
  EXPECT_GT(move(llama3, R"({"rope_scaling": {"factor": 7.0}})"), 10 * kTolerance);
  EXPECT_GT(move("{}", R"({"rope_theta": 6000.0})"), 100 * kTolerance);
  EXPECT_GT(move("{}", R"({"rms_norm_eps": 0.01})"), 20 * kTolerance);
  for (const char* const bias :
       {R"({"drop": "q_proj"})", R"({"drop": "k_proj"})", R"({"drop": "v_proj"})",
        R"({"drop": "o_proj"})", R"({"drop": "gate_proj"})", R"({"drop": "down_proj"})"}) {
    EXPECT_GT(move(R"({"attention_bias": true, "mlp_bias": true})", bias), 100 * kTolerance)
        << bias;
  }
}

// A step of sequences in every state gives each the bits that it gets alone.
TEST(MixedBatchTest, GivesEachSequenceTheBitsThatItGetsAlone) {
  const TemporaryFolder folder;
  json config = TinyConfig();
  config["attention_bias"] = true;
  const TinyModel tiny = MakeTinyModel(config, {DType::kBF16, DType::kF32});
  tiny.Write(folder.path());
  struct Text {
    std::vector<int32_t> ids;
    std::vector<BlockId> blocks;
    std::vector<std::vector<float>> expected;
    size_t done = 0;
    std::vector<size_t> steps;  // tokens of each step
  };
  const std::vector<std::pair<int64_t, std::vector<size_t>>> plans = {
      {300, {100, 156, 1, 1, 42}},  // prefill in chunks across the 256th key, decode between
      {20, {15, 1, 1, 1, 1, 1}},    // a prompt, then decoding
      {40, {1, 1, 1, 1, 36}},       // decoding, then scoring
      {17, {17}},                   // ends early
      {33, {16, 17}},               // at the edge of a block
  };
  const auto alone = MustLoadModel(folder.path(), 1);
  std::vector<Text> texts;
  BlockId next_block = 0;
  for (size_t i = 0; i < plans.size(); ++i) {
    Text text;
    text.ids = RandomTokens(plans[i].first, 61, 10 + i);
    text.expected = AllLogits(*alone, text.ids);
    const int64_t num_blocks = alone->cache_layout().BlocksForTokens(plans[i].first);
    text.blocks = ScatteredBlocks(next_block, num_blocks);
    next_block += static_cast<BlockId>(num_blocks);
    text.steps = plans[i].second;
    const auto reference = ReferenceLogits(tiny, text.ids);
    EXPECT_LT(LargestDifference(text.expected, reference), kTolerance);
    texts.push_back(std::move(text));
  }
  for (const int num_threads : {1, 2, 4}) {
    const auto model = MustLoadModel(folder.path(), num_threads);
    for (Text& text : texts) text.done = 0;
    for (size_t step = 0; step < 6; ++step) {
      std::vector<SequenceSlice> sequences;
      std::vector<const std::vector<float>*> expected;
      for (Text& text : texts) {
        if (step >= text.steps.size()) continue;
        const size_t count = text.steps[step];
        const size_t num_logits = std::min<size_t>(count, 1 + step * 7);
        sequences.push_back({absl::MakeConstSpan(text.ids).subspan(text.done, count),
                             static_cast<int64_t>(text.done), text.blocks,
                             static_cast<int64_t>(num_logits)});
        text.done += count;
        for (size_t i = text.done - num_logits; i < text.done; ++i) {
          expected.push_back(&text.expected[i]);
        }
      }
      ASSERT_TRUE(model->Forward(sequences).ok());
      ASSERT_EQ(model->num_logits(), static_cast<int64_t>(expected.size()));
      for (size_t row = 0; row < expected.size(); ++row) {
        ASSERT_EQ(LogitsRow(*model, static_cast<int64_t>(row)), *expected[row])
            << num_threads << " threads, step " << step << ", row " << row;
      }
    }
  }
}

// Two sequences with a prefix in common read it from the same blocks.
TEST(MixedBatchTest, SharesBlocksBetweenSequences) {
  const TemporaryFolder folder;
  const TinyModel tiny = MakeTinyModel(TinyConfig(), {DType::kF32});
  tiny.Write(folder.path());
  const auto model = MustLoadModel(folder.path(), 2);
  const std::vector<int32_t> prefix = RandomTokens(32, 61, 3);
  std::vector<std::vector<int32_t>> texts(2, prefix);
  std::vector<std::vector<float>> expected;
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::vector<int32_t> rest = RandomTokens(9, 61, 4 + i);
    texts[i].insert(texts[i].end(), rest.begin(), rest.end());
    expected.push_back(AllLogits(*model, texts[i]).back());
  }
  ASSERT_TRUE(model->Forward({{prefix, 0, {50, 40}, 0}}).ok());
  EXPECT_EQ(model->num_logits(), 0);
  ASSERT_TRUE(model
                  ->Forward({{absl::MakeConstSpan(texts[0]).subspan(32), 32, {50, 40, 7}, 1},
                             {absl::MakeConstSpan(texts[1]).subspan(32), 32, {50, 40, 3}, 1}})
                  .ok());
  EXPECT_EQ(LogitsRow(*model, 0), expected[0]);
  EXPECT_EQ(LogitsRow(*model, 1), expected[1]);
}

TEST(BlockSizeTest, DoesNotChangeALogit) {
  const TemporaryFolder folder;
  MakeTinyModel(TinyConfig(), {DType::kF32}).Write(folder.path());
  const std::vector<int32_t> ids = RandomTokens(290, 61, 5);
  std::vector<std::vector<float>> expected;
  for (const int block_size : {16, 32, 48, 512}) {
    ModelOptions options = SmallOptions();
    options.block_size = block_size;
    const auto model = MustLoadModel(folder.path(), 2, options);
    EXPECT_EQ(model->cache_layout().block_size, block_size);
    const auto logits = AllLogits(*model, ids);
    if (expected.empty()) expected = logits;
    EXPECT_EQ(logits, expected) << block_size;
  }
}

}  // namespace
}  // namespace ultrasketch
