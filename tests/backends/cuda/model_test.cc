// Whole models on the device against the CPU and against the references.
#include "engine/models/model.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/base/file.h"
#include "engine/codecs/fold/fold_linear.h"
#include "engine/models/layer_table.h"
#include "tests/backends/cuda/device_test.h"
#include "tests/base/temporary_folder.h"
#include "tests/codecs/fold_examples.h"
#include "tests/models/tiny_model.h"

namespace ultrasketch {
namespace {

std::unique_ptr<Model> Load(const std::string& folder, const std::shared_ptr<Backend>& backend,
                            const ModelOptions& options = {}) {
  auto checkpoint = Checkpoint::Open(folder);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  if (!checkpoint.ok()) return nullptr;
  auto model = LoadModel(*checkpoint, backend, options);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *std::move(model) : nullptr;
}

int64_t AvailableBytes(Backend& backend) {
  const std::string message(backend.Allocate(int64_t{1} << 50).status().message());
  return std::stoll(message.substr(message.find("needed, ") + 8));
}

std::vector<BlockId> Blocks(int64_t first, int64_t count) {
  std::vector<BlockId> blocks;
  for (int64_t i = 0; i < count; ++i) blocks.push_back(static_cast<BlockId>(first + i));
  return blocks;
}

double MeanNll(Model& model, const std::vector<int32_t>& ids) {
  const std::vector<std::vector<float>> logits = AllLogits(model, ids);
  double sum = 0;
  for (size_t i = 0; i + 1 < ids.size(); ++i) sum -= LogProbability(logits[i], ids[i + 1]);
  return sum / static_cast<double>(ids.size() - 1);
}

struct OracleCase {
  std::string prompt;
  std::vector<int32_t> ids;
};

std::vector<OracleCase> ReadPrompts() {
  const auto text = ReadFile(TestDataFolder() + "/logits-classics-6m.json");
  EXPECT_TRUE(text.ok()) << text.status();
  std::vector<OracleCase> cases;
  if (!text.ok()) return cases;
  const nlohmann::json oracle = nlohmann::json::parse(*text);
  for (const nlohmann::json& entry : oracle.at("cases")) {
    cases.push_back({entry.at("prompt"), entry.at("ids")});
  }
  EXPECT_FALSE(cases.empty());
  return cases;
}

// Continues the prompt by 64 tokens, each the CPU's choice, and compares what the device would have
// chosen. Where the CPU's two best logits are within what fp16 inputs can change, either will do;
// that must be rare.
void ExpectTheSameGreedyText(Model& cpu, Model& cuda, const OracleCase& prompt) {
  constexpr float kTie = 0.02f;
  const std::vector<BlockId> blocks = Blocks(2, 16);
  std::vector<int32_t> ids = prompt.ids;
  int64_t num_cached = 0;
  int ties = 0;
  for (int token = 0; token < 64; ++token) {
    const auto fresh = absl::MakeConstSpan(ids).subspan(static_cast<size_t>(num_cached));
    const SequenceSlice step = {fresh, num_cached, blocks, 1};
    ASSERT_TRUE(cpu.Forward({step}).ok());
    ASSERT_TRUE(cuda.Forward({step}).ok());
    const std::vector<float> expected = LogitsRow(cpu, 0);
    const std::vector<float> found = LogitsRow(cuda, 0);
    const auto chosen = std::max_element(expected.begin(), expected.end()) - expected.begin();
    const auto choice = std::max_element(found.begin(), found.end()) - found.begin();
    if (choice != chosen) {
      ASSERT_LT(expected[static_cast<size_t>(chosen)] - expected[static_cast<size_t>(choice)], kTie)
          << prompt.prompt << ": token " << token;
      ++ties;
    }
    num_cached = static_cast<int64_t>(ids.size());
    ids.push_back(static_cast<int32_t>(chosen));
  }
  EXPECT_LE(ties, 1) << prompt.prompt;
}

// A checkpoint of folded sites, larger than the tiny model's: random bits, scales that keep the
// activations of order one.
void WriteFoldedModel(const std::string& folder) {
  nlohmann::json config = TinyConfig();
  config["hidden_size"] = 320;
  config["num_attention_heads"] = 10;
  config["num_key_value_heads"] = 5;
  config["head_dim"] = 32;
  config["intermediate_size"] = 700;
  config["vocab_size"] = 1000;
  config["max_position_embeddings"] = 2048;
  TinyModel model = MakeTinyModel(config, {DType::kBF16, DType::kF16, DType::kF32});
  const std::vector<LinearSite> sites = LinearSites(model.Parsed());
  constexpr uint64_t kSeed = 42;
  model.config["quantization_config"] = {
      {"quant_method", "ultrasketch"}, {"version", 1}, {"codec", "fold"}, {"seed", kSeed}};
  for (const LinearSite& site : sites) {
    auto fold = ExampleFold(
        site, FoldLayout(kSeed, site.name, EvenFoldClasses(site.cols, (site.cols + 1) / 2), {}));
    std::vector<float> scales = fold->Scales();
    for (float& scale : scales) scale *= 2 / std::sqrt(static_cast<float>(site.cols));
    const uint8_t* bits = fold->bits();
    fold = FoldLinear::FromParts(site, fold->layout(),
                                 std::vector<uint8_t>(bits, bits + site.rows * fold->row_bytes()),
                                 scales);
    for (const SiteMember& member : site.members) model.tensors.erase(member.name + ".weight");
    model.sites.push_back(std::move(fold));
  }
  model.Write(folder);
}

using CudaModelTest = CudaTest;

TEST_F(CudaModelTest, OneOfManyStepsTellsWhereItsTimeWent) {
  const TemporaryFolder folder;
  WriteFoldedModel(folder.path());
  const auto model = Load(folder.path(), CudaBackendOrNull());
  ASSERT_NE(model, nullptr);
  const std::vector<int32_t> ids = RandomTokens(200, 1000, 5);
  const std::vector<BlockId> blocks = Blocks(0, 20);
  ASSERT_TRUE(model->Forward({{ids, 0, blocks, 1}}).ok());
  std::vector<float> logits;
  int num_measured = 0;
  for (int i = 0; i < 200; ++i) {
    const absl::Time begin = absl::Now();
    // The same step, which is a graph from the second time on.
    ASSERT_TRUE(model->Forward({{absl::MakeConstSpan(ids).first(1), 200, blocks, 1}}).ok());
    const absl::Duration duration = absl::Now() - begin;
    const std::vector<float> row = LogitsRow(*model, 0);
    if (logits.empty()) logits = row;
    ASSERT_EQ(row, logits);
    const std::optional<StageDurations> stages = model->stage_durations();
    if (!stages.has_value()) continue;
    ++num_measured;
    EXPECT_LE(stages->total(), duration);
    for (const StepStage stage : {StepStage::kSketch, StepStage::kAttention, StepStage::kHead}) {
      EXPECT_GT((*stages)[stage], absl::ZeroDuration()) << static_cast<int>(stage);
    }
    EXPECT_EQ((*stages)[StepStage::kGemm], absl::ZeroDuration());
    EXPECT_EQ((*stages)[StepStage::kOther], absl::ZeroDuration());
  }
  EXPECT_GE(num_measured, 2);
  EXPECT_LE(num_measured, 4);
}

TEST_F(CudaModelTest, ModelsThatShareTheDeviceComputeWhatEachComputesAlone) {
  const TemporaryFolder folder;
  WriteFoldedModel(folder.path());
  const std::vector<int32_t> ids = RandomTokens(200, 1000, 5);
  const std::vector<int32_t> sample_ids = ReadPrompts()[0].ids;
  const auto new_backend = [](std::shared_ptr<Backend> beside) {
    return *CreateBackend("cuda:0", {.beside = std::move(beside)});
  };
  const auto alone = AllLogits(*Load(folder.path(), new_backend(nullptr)), ids);
  const auto sample_alone = AllLogits(*Load(SampleModelFolder(), new_backend(nullptr)), sample_ids);

  const std::shared_ptr<Backend> first = new_backend(nullptr);
  const auto model = Load(folder.path(), first);
  const int64_t before = AvailableBytes(*first);
  const std::shared_ptr<Backend> second = new_backend(first);
  // A stream, but no workspace of its own.
  EXPECT_LT(before - AvailableBytes(*first), int64_t{16} << 20);
  ModelOptions large;
  large.max_step_logits = 512;
  const auto sample = Load(SampleModelFolder(), second, large);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(AllLogits(*model, ids), alone);
    EXPECT_EQ(AllLogits(*sample, sample_ids), sample_alone);
  }
  // They count what they share, and little else.
  EXPECT_LT(std::abs(first->workspace_bytes() - second->workspace_bytes()), int64_t{4} << 20);
}

TEST_F(CudaModelTest, LogLikelihoodsOfTheSampleModelAreTheCpus) {
  const auto cpu = Load(SampleModelFolder(), CpuBackend());
  const auto cuda = Load(SampleModelFolder(), CudaBackendOrNull());
  ASSERT_TRUE(cpu != nullptr && cuda != nullptr);
  for (const OracleCase& prompt : ReadPrompts()) {
    if (prompt.ids.size() < 2) continue;
    EXPECT_NEAR(MeanNll(*cuda, prompt.ids), MeanNll(*cpu, prompt.ids), 5e-3) << prompt.prompt;
  }
}

TEST_F(CudaModelTest, GreedyTextsOfTheSampleModelAreTheCpus) {
  const auto cpu = Load(SampleModelFolder(), CpuBackend());
  const auto cuda = Load(SampleModelFolder(), CudaBackendOrNull());
  ASSERT_TRUE(cpu != nullptr && cuda != nullptr);
  for (const OracleCase& prompt : ReadPrompts()) ExpectTheSameGreedyText(*cpu, *cuda, prompt);
}

TEST_F(CudaModelTest, RandomModelsOfEveryFamilyAgreeWithTheReference) {
  for (const char* name : {"qwen2", "llama3", "mistral-linear", "qwen3", "smollm3"}) {
    const std::string folder = TestDataFolder() + "/models/" + name;
    const auto text = ReadFile(folder + "/oracle.json");
    ASSERT_TRUE(text.ok()) << text.status();
    const auto model = Load(folder, CudaBackendOrNull(), SmallOptions());
    ASSERT_TRUE(model != nullptr);
    for (const nlohmann::json& entry : nlohmann::json::parse(*text)) {
      const std::vector<int32_t> ids = entry.at("ids");
      const std::vector<std::vector<float>> expected = entry.at("logits");
      const std::vector<std::vector<float>> found = AllLogits(*model, ids);
      const size_t first_row = entry.at("first_row");
      for (size_t row = 0; row < expected.size(); ++row) {
        EXPECT_LT(RelativeError(found[first_row + row], expected[row]), 1e-2)
            << name << ", position " << first_row + row << " of " << ids.size();
      }
    }
  }
}

TEST_F(CudaModelTest, AFoldedModelAgreesWithTheCpu) {
  const TemporaryFolder folder;
  WriteFoldedModel(folder.path());
  for (const KvCacheType type : {KvCacheType::kFp16, KvCacheType::kInt8}) {
    const ModelOptions options = {.kv_cache_type = type};
    const auto cpu = Load(folder.path(), CpuBackend(), options);
    const auto cuda = Load(folder.path(), CudaBackendOrNull(), options);
    ASSERT_TRUE(cpu != nullptr && cuda != nullptr);
    for (const int64_t count : {1, 3, 20, 200}) {
      const std::vector<int32_t> ids = RandomTokens(count, 1000, static_cast<uint64_t>(count));
      const auto expected = AllLogits(*cpu, ids);
      const auto found = AllLogits(*cuda, ids);
      for (size_t row = 0; row < expected.size(); ++row) {
        EXPECT_LT(RelativeError(found[row], expected[row]), 1e-2)
            << "position " << row << " of " << count
            << (type == KvCacheType::kInt8 ? ", int8" : "");
      }
    }
  }
}

// Every way of spreading a prompt over steps, beside whatever else, gives the same bits.
void ExpectLogitsOfNoBatch(Model& model) {
  constexpr size_t kNumTokens = 262;
  const std::vector<int32_t> ids =
      RandomTokens(kNumTokens, static_cast<int32_t>(model.config().vocab_size), 3);
  const std::vector<BlockId> blocks = Blocks(0, 17);
  ASSERT_TRUE(model.Forward({{ids, 0, blocks, 1}}).ok());
  const std::vector<float> expected = LogitsRow(model, 0);
  const std::vector<int32_t> neighbour = {5, 6, 7};
  const std::vector<BlockId> neighbour_blocks = Blocks(100, 1);
  for (const size_t chunk : {1, 7, 30, 130, 257}) {
    const std::vector<BlockId> own = Blocks(static_cast<int64_t>(20 + chunk % 50), 17);
    for (size_t first = 0; first < ids.size(); first += chunk) {
      const size_t count = std::min(chunk, ids.size() - first);
      const bool is_last = first + count == ids.size();
      const SequenceSlice piece = {absl::MakeConstSpan(ids).subspan(first, count),
                                   static_cast<int64_t>(first), own, is_last ? 1 : 0};
      const SequenceSlice other = {neighbour, 0, neighbour_blocks, is_last ? 2 : 0};
      ASSERT_TRUE(model.Forward({other, piece}).ok());
    }
    EXPECT_EQ(LogitsRow(model, 2), expected) << "chunks of " << chunk;
  }
}

TEST_F(CudaModelTest, LogitsOfADenseModelDoNotDependOnChunksOrBatch) {
  const auto model = Load(SampleModelFolder(), CudaBackendOrNull());
  ASSERT_TRUE(model != nullptr);
  ExpectLogitsOfNoBatch(*model);
}

TEST_F(CudaModelTest, LogitsOfAFoldedModelDoNotDependOnChunksOrBatch) {
  const TemporaryFolder folder;
  WriteFoldedModel(folder.path());
  for (const KvCacheType type : {KvCacheType::kFp16, KvCacheType::kInt8}) {
    const auto model = Load(folder.path(), CudaBackendOrNull(), {.kv_cache_type = type});
    ASSERT_TRUE(model != nullptr);
    ExpectLogitsOfNoBatch(*model);
  }
}

TEST_F(CudaTest, LoadedAndUnloadedModelsGiveEveryByteBack) {
  const std::vector<int32_t> ids = {1, 2, 3, 4, 5};
  const auto cycle = [&] {
    auto backend = CreateBackend("cuda", {});
    ASSERT_TRUE(backend.ok()) << backend.status();
    const auto model = Load(SampleModelFolder(), *backend);
    ASSERT_NE(model, nullptr);
    // Often enough for a graph.
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(model->Forward({{ids, 0, Blocks(0, 1), 1}}).ok());
    }
  };
  cycle();  // brings the kernels' code to the device
  const int64_t before = AvailableBytes(*CudaBackendOrNull());
  for (int i = 0; i < 100; ++i) cycle();
  EXPECT_EQ(AvailableBytes(*CudaBackendOrNull()), before);
}

TEST_F(CudaTest, AModelThatDoesNotFitIsRefusedAndLeavesNothingBehind) {
  const auto checkpoint = Checkpoint::Open(SampleModelFolder());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  auto backend = CreateBackend("cuda", {});
  ASSERT_TRUE(backend.ok()) << backend.status();
  // What a model needs at most is what is there when it is refused.
  constexpr int64_t kLeft = int64_t{4} << 20;
  const auto producer = CudaBackendOrNull()->Allocate(AvailableBytes(*CudaBackendOrNull()) - kLeft);
  ASSERT_TRUE(producer.ok()) << producer.status();
  const int64_t before = AvailableBytes(*CudaBackendOrNull());
  const auto model = LoadModel(*checkpoint, *backend, {});
  EXPECT_EQ(model.status().code(), absl::StatusCode::kResourceExhausted) << model.status();
  EXPECT_NE(model.status().message().find("bytes needed"), std::string::npos) << model.status();
  EXPECT_EQ(AvailableBytes(*CudaBackendOrNull()), before);
}

}  // namespace
}  // namespace ultrasketch
