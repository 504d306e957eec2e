// Against the answers of Hugging Face's transformers (float32 on the same bfloat16 weights). Those
// for random models are made by tests/data/models/make_oracles.py.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/base/file.h"
#include "engine/models/model.h"
#include "tests/models/tiny_model.h"

namespace ultrasketch {
namespace {

struct OracleCase {
  std::string prompt;
  std::vector<int32_t> ids;
  double sum_nll;
  std::vector<int32_t> top_ids;
  std::vector<float> top_logits;
  std::vector<int32_t> greedy_ids;
};

std::vector<OracleCase> ReadOracle() {
  const auto text = ReadFile(TEST_DATA_DIR "/logits-classics-6m.json");
  EXPECT_TRUE(text.ok()) << text.status();
  std::vector<OracleCase> cases;
  const nlohmann::json oracle = nlohmann::json::parse(*text);
  for (const nlohmann::json& entry : oracle.at("cases")) {
    cases.push_back({entry.at("prompt"), entry.at("ids"), entry.at("sum_nll"), entry.at("top_ids"),
                     entry.at("top_logits"), entry.at("greedy_ids")});
  }
  return cases;
}

std::unique_ptr<Model> LoadSample(int num_threads, KvCacheType type = KvCacheType::kFp16) {
  auto checkpoint = Checkpoint::Open(SAMPLE_MODEL_DIR);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  auto backend = CreateBackend("cpu", {num_threads});
  EXPECT_TRUE(backend.ok()) << backend.status();
  auto model = LoadModel(*checkpoint, *backend, {.kv_cache_type = type});
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

std::vector<BlockId> Blocks(int64_t first, int64_t count) {
  std::vector<BlockId> blocks;
  for (int64_t i = 0; i < count; ++i) blocks.push_back(static_cast<BlockId>(first + i));
  return blocks;
}

std::vector<float> Row(Model& model, int64_t row) {
  std::vector<float> logits(static_cast<size_t>(model.config().vocab_size));
  EXPECT_TRUE(model.CopyLogits(row, absl::MakeSpan(logits)).ok());
  return logits;
}

int32_t Greedy(Model& model, int64_t row) {
  const std::vector<float> logits = Row(model, row);
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

TEST(OracleTest, LogLikelihoodsAndTopLogitsMatch) {
  const auto model = LoadSample(2);
  const std::vector<OracleCase> cases = ReadOracle();
  ASSERT_FALSE(cases.empty());
  for (const OracleCase& oracle : cases) {
    const auto count = static_cast<int64_t>(oracle.ids.size());
    const std::vector<BlockId> blocks = Blocks(3, (count + 15) / 16);
    ASSERT_TRUE(model->Forward({{oracle.ids, 0, blocks, count}}).ok());
    double sum_nll = 0;
    for (int64_t i = 0; i + 1 < count; ++i) {
      sum_nll -= LogProbability(Row(*model, i), oracle.ids[static_cast<size_t>(i + 1)]);
    }
    EXPECT_NEAR(sum_nll / static_cast<double>(std::max<int64_t>(1, count - 1)),
                oracle.sum_nll / static_cast<double>(std::max<int64_t>(1, count - 1)), 1e-3)
        << oracle.prompt;
    const std::vector<float> last = Row(*model, count - 1);
    for (size_t i = 0; i < oracle.top_ids.size(); ++i) {
      EXPECT_NEAR(last[static_cast<size_t>(oracle.top_ids[i])], oracle.top_logits[i], 2e-3)
          << oracle.prompt;
    }
  }
}

TEST(OracleTest, GreedyTokensMatchWhenAllPromptsAreDecodedTogether) {
  const auto model = LoadSample(3);
  const std::vector<OracleCase> cases = ReadOracle();
  constexpr int64_t kBlocksEach = 8;
  std::vector<std::vector<int32_t>> generated(cases.size());
  std::vector<std::vector<BlockId>> blocks;
  std::vector<SequenceSlice> step;
  for (size_t i = 0; i < cases.size(); ++i) {
    blocks.push_back(Blocks(static_cast<int64_t>(i) * kBlocksEach, kBlocksEach));
    step.push_back({cases[i].ids, 0, blocks[i], 1});
  }
  for (size_t token = 0; token < cases[0].greedy_ids.size(); ++token) {
    ASSERT_TRUE(model->Forward(step).ok());
    for (size_t i = 0; i < cases.size(); ++i) {
      generated[i].push_back(Greedy(*model, static_cast<int64_t>(i)));
    }
    for (size_t i = 0; i < cases.size(); ++i) {
      const auto cached = static_cast<int64_t>(cases[i].ids.size() + token);
      step[i] = {absl::MakeConstSpan(&generated[i].back(), 1), cached, blocks[i], 1};
    }
  }
  for (size_t i = 0; i < cases.size(); ++i) {
    EXPECT_EQ(generated[i], cases[i].greedy_ids) << cases[i].prompt;
  }
}

// Every way of spreading a prompt over steps, beside whatever else, gives the same bits. The prompt
// is longer than what attention takes at once.
void ExpectLogitsOfNoBatch(KvCacheType type) {
  constexpr size_t kNumTokens = 262;
  std::vector<int32_t> ids;
  for (const OracleCase& oracle : ReadOracle()) {
    ids.insert(ids.end(), oracle.ids.begin(), oracle.ids.end());
  }
  ASSERT_FALSE(ids.empty());
  for (size_t i = 0; ids.size() < kNumTokens; ++i) ids.push_back(ids[i]);
  ids.resize(kNumTokens);
  const auto alone = LoadSample(1, type);
  const std::vector<BlockId> blocks = Blocks(0, 17);
  ASSERT_TRUE(alone->Forward({{ids, 0, blocks, 1}}).ok());
  const std::vector<float> expected = Row(*alone, 0);

  const std::vector<int32_t> neighbour = {5, 6, 7};
  const std::vector<BlockId> neighbour_blocks = Blocks(100, 1);
  struct Plan {
    int num_threads;
    std::vector<size_t> chunks;
  };
  for (const Plan& plan : {Plan{1, {7, 257}}, Plan{2, {1}}, Plan{3, {2, 64}}}) {
    const auto model = LoadSample(plan.num_threads, type);
    for (const size_t chunk : plan.chunks) {
      const std::vector<BlockId> own = Blocks(static_cast<int64_t>(chunk % 50), 17);
      for (size_t first = 0; first < ids.size(); first += chunk) {
        const size_t count = std::min(chunk, ids.size() - first);
        const bool is_last = first + count == ids.size();
        const SequenceSlice piece = {absl::MakeConstSpan(ids).subspan(first, count),
                                     static_cast<int64_t>(first), own, is_last ? 1 : 0};
        const SequenceSlice other = {neighbour, 0, neighbour_blocks, is_last ? 2 : 0};
        ASSERT_TRUE(model->Forward({other, piece}).ok());
      }
      EXPECT_EQ(Row(*model, 2), expected) << plan.num_threads << " threads, chunks of " << chunk;
    }
  }
}

TEST(OracleTest, LogitsDoNotDependOnChunksBatchOrThreads) {
  for (const KvCacheType type : kKvCacheTypes) {
    SCOPED_TRACE(KvCacheTypeName(type));
    ExpectLogitsOfNoBatch(type);
  }
}

// Over all prompts: of a few tokens rounding may change more.
double MeanNegativeLogLikelihood(KvCacheType type) {
  const auto model = LoadSample(2, type);
  double sum_nll = 0;
  int64_t num_predicted = 0;
  for (const OracleCase& oracle : ReadOracle()) {
    const auto count = static_cast<int64_t>(oracle.ids.size());
    if (count < 2) continue;
    const std::vector<BlockId> blocks = Blocks(3, (count + 15) / 16);
    EXPECT_TRUE(model->Forward({{oracle.ids, 0, blocks, count}}).ok());
    for (int64_t i = 0; i + 1 < count; ++i) {
      sum_nll -= LogProbability(Row(*model, i), oracle.ids[static_cast<size_t>(i + 1)]);
    }
    num_predicted += count - 1;
  }
  EXPECT_GT(num_predicted, 50);
  return sum_nll / static_cast<double>(num_predicted);
}

TEST(OracleTest, TypesOfTheCacheHardlyChangeLogLikelihoods) {
  const double expected = MeanNegativeLogLikelihood(KvCacheType::kFp32);
  EXPECT_NEAR(MeanNegativeLogLikelihood(KvCacheType::kFp16), expected, 2e-4);
  EXPECT_NEAR(MeanNegativeLogLikelihood(KvCacheType::kInt8), expected, 5e-3);
  EXPECT_NEAR(MeanNegativeLogLikelihood(KvCacheType::kInt4), expected, 5e-2);
}

class RandomModelOracleTest : public ::testing::TestWithParam<const char*> {};

TEST_P(RandomModelOracleTest, LogitsMatch) {
  const std::string folder = std::string(TEST_DATA_DIR "/models/") + GetParam();
  const auto text = ReadFile(folder + "/oracle.json");
  ASSERT_TRUE(text.ok()) << text.status();
  const auto model = MustLoadModel(folder, 2);
  for (const nlohmann::json& entry : nlohmann::json::parse(*text)) {
    const std::vector<int32_t> ids = entry.at("ids");
    const std::vector<std::vector<float>> expected = entry.at("logits");
    const std::vector<std::vector<float>> found = AllLogits(*model, ids);
    const size_t first_row = entry.at("first_row");
    ASSERT_EQ(first_row + expected.size(), ids.size());
    for (size_t row = 0; row < expected.size(); ++row) {
      for (size_t i = 0; i < expected[row].size(); ++i) {
        ASSERT_NEAR(found[first_row + row][i], expected[row][i], 5e-4)
            << "position " << first_row + row << " of " << ids.size() << ", token " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, RandomModelOracleTest,
                         ::testing::Values("qwen2", "llama3", "mistral-linear", "qwen3", "smollm3"),
                         [](const auto& model) {
                           std::string name = model.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace ultrasketch
