// What LoadModel refuses, and what a loaded model says of itself.
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/models/memory_plan.h"
#include "tests/base/temporary_folder.h"
#include "tests/models/tiny_model.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;

constexpr absl::StatusCode kDataLoss = absl::StatusCode::kDataLoss;
constexpr absl::StatusCode kNotFound = absl::StatusCode::kNotFound;
constexpr absl::StatusCode kInvalidArgument = absl::StatusCode::kInvalidArgument;

nlohmann::json ConfigWithEverything() {
  nlohmann::json config = TinyConfig();
  config["attention_bias"] = true;
  config["mlp_bias"] = true;
  config["tie_word_embeddings"] = false;
  return config;
}

class LoadModelTest : public ::testing::Test {
 protected:
  LoadModelTest() : tiny_(MakeTinyModel(ConfigWithEverything(), {DType::kBF16})) {}

  absl::StatusOr<std::unique_ptr<Model>> Load(const ModelOptions& options = SmallOptions()) {
    tiny_.Write(folder_.path());
    auto checkpoint = Checkpoint::Open(folder_.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return LoadModel(*checkpoint, *CreateBackend("cpu", {.num_threads = 1}), options);
  }

  void ExpectRefused(absl::StatusCode code, const std::vector<std::string>& parts,
                     const ModelOptions& options = SmallOptions()) {
    const absl::Status status = Load(options).status();
    EXPECT_EQ(status.code(), code) << status;
    for (const std::string& part : parts) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(part));
    }
  }

  TemporaryFolder folder_;
  TinyModel tiny_;
};

TEST_F(LoadModelTest, RefusesAMissingTensorByName) {
  const TinyModel whole = tiny_;
  for (const auto& [name, tensor] : whole.tensors) {
    tiny_.tensors.erase(name);
    ExpectRefused(kNotFound, {folder_.path(), "\"" + name + "\"", "missing"});
    tiny_.tensors[name] = tensor;
  }
}

TEST_F(LoadModelTest, RefusesATensorOfAnotherShapeByName) {
  const TinyModel whole = tiny_;
  for (const auto& [name, tensor] : whole.tensors) {
    TinyTensor& changed = tiny_.tensor(name);
    changed.shape.back() += 1;
    changed.values.resize(changed.values.size() + static_cast<size_t>(tensor.shape[0]), 1.0f);
    if (tensor.shape.size() == 1) changed.values.resize(static_cast<size_t>(changed.shape[0]));
    ExpectRefused(kDataLoss, {folder_.path() + "/model.safetensors", "\"" + name + "\"",
                              "expected shape " + ShapeString(tensor.shape),
                              "found " + ShapeString(changed.shape)});
    changed = tensor;
  }
}

TEST_F(LoadModelTest, RefusesANumberThatIsNotFiniteByElement) {
  const TinyModel whole = tiny_;
  for (const auto& [name, tensor] : whole.tensors) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      const size_t at = tensor.values.size() - 2;
      tiny_.tensor(name).values[at] = bad;
      ExpectRefused(kDataLoss, {folder_.path() + "/model.safetensors", "\"" + name + "\"",
                                "element " + std::to_string(at)});
    }
    tiny_.tensor(name) = tensor;
  }
}

TEST_F(LoadModelTest, SaysWhatMakesAHeadNecessary) {
  tiny_.tensors.erase("lm_head.weight");
  ExpectRefused(kNotFound, {"\"lm_head.weight\"", "missing", "tie_word_embeddings"});
}

TEST_F(LoadModelTest, TheStoredTablesDecideWhatTheHeadIs) {
  // Logits of the model as it is, for a config that says the same as the tables.
  const auto logits_of = [&](const TinyModel& model, int num_shards = 1) {
    const TemporaryFolder folder;
    model.Write(folder.path(), num_shards);
    const auto loaded = MustLoadModel(folder.path());
    return std::pair(AllLogits(*loaded, {3, 1, 4, 1, 5}), loaded->memory_usage().embedding);
  };
  const auto untied = logits_of(tiny_);
  TinyModel contradictory = tiny_;
  contradictory.config["tie_word_embeddings"] = true;
  EXPECT_EQ(logits_of(contradictory), untied);
  EXPECT_EQ(logits_of(contradictory, 3), untied);

  TinyModel tied = contradictory;
  tied.tensors.erase("lm_head.weight");
  const auto expected = logits_of(tied);
  EXPECT_NE(expected, untied);
  TinyModel copied = tied;
  copied.tensors["lm_head.weight"] = tied.tensor("model.embed_tokens.weight");
  EXPECT_EQ(logits_of(copied), expected);
  TinyModel renamed = copied;
  renamed.tensors.erase("model.embed_tokens.weight");
  EXPECT_EQ(logits_of(renamed), expected);
  EXPECT_EQ(logits_of(renamed, 3), expected);
}

TEST_F(LoadModelTest, RefusesAShardThatLacksATensor) {
  tiny_.tensors.erase("model.layers.1.mlp.up_proj.weight");
  tiny_.Write(folder_.path(), 3);
  const auto status =
      LoadModel(*Checkpoint::Open(folder_.path()), *CreateBackend("cpu", {}), SmallOptions())
          .status();
  EXPECT_EQ(status.code(), kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.layers.1.mlp.up_proj.weight"));
}

TEST_F(LoadModelTest, RefusesBlockSizesThatTheDeviceCannotUse) {
  for (const int block_size : {-16, 0, 1, 8, 15, 17, 24, 100, 1 << 20}) {
    ModelOptions options = SmallOptions();
    options.block_size = block_size;
    ExpectRefused(kInvalidArgument,
                  {"block_size", "multiple of 16", "found " + std::to_string(block_size)}, options);
  }
}

TEST_F(LoadModelTest, RefusesLimitsOutOfRange) {
  const std::pair<const char*, int64_t ModelOptions::*> limits[] = {
      {"max_step_tokens", &ModelOptions::max_step_tokens},
      {"max_step_logits", &ModelOptions::max_step_logits},
      {"kv_cache_tokens", &ModelOptions::kv_cache_tokens}};
  for (const auto& [name, limit] : limits) {
    for (const int64_t value : {int64_t{0}, int64_t{-1}, std::numeric_limits<int64_t>::min(),
                                std::numeric_limits<int64_t>::max()}) {
      ModelOptions options = SmallOptions();
      options.*limit = value;
      ExpectRefused(kInvalidArgument, {name, std::to_string(value)}, options);
    }
  }
}

TEST_F(LoadModelTest, SaysHowMuchMemoryTheCacheNeedsAndThereIs) {
  ModelOptions options = SmallOptions();
  options.kv_cache_tokens = int64_t{1} << 34;
  options.kv_cache_type = KvCacheType::kFp16;
  // 2 layers, keys and values, 2 heads of 10 numbers of 2 bytes.
  const int64_t bytes = options.kv_cache_tokens * 2 * 2 * 2 * 10 * 2;
  ExpectRefused(absl::StatusCode::kResourceExhausted,
                {"KV cache", std::to_string(bytes) + " bytes", "needed", "available"}, options);
}

TEST_F(LoadModelTest, RefusesWorkspacesThatDoNotFit) {
  nlohmann::json config = TinyConfig();
  config.update({{"hidden_size", 2},
                 {"head_dim", 2},
                 {"intermediate_size", 1 << 15},
                 {"vocab_size", 1 << 15}});
  tiny_ = MakeTinyModel(config, {DType::kBF16});
  ModelOptions options = SmallOptions();
  options.max_step_tokens = 1 << 28;
  ExpectRefused(absl::StatusCode::kResourceExhausted, {"needed", "available"}, options);
  options = SmallOptions();
  options.max_step_logits = 1 << 28;
  ExpectRefused(absl::StatusCode::kResourceExhausted, {"needed", "available"}, options);
}

// Before a weight is read, even where the cache's bytes are more than 64 bits can count.
TEST_F(LoadModelTest, RefusesCachesBeyondCounting) {
  for (const int num_layers : {1 << 9, 1 << 10, 1 << 11, 1 << 12}) {
    nlohmann::json config = TinyConfig();
    config.update({{"num_hidden_layers", num_layers},
                   {"num_attention_heads", 1 << 14},
                   {"num_key_value_heads", 1 << 14},
                   {"head_dim", 1 << 12}});
    tiny_ = TinyModel();
    tiny_.config = config;
    ModelOptions options = SmallOptions();
    options.kv_cache_tokens = int64_t{1} << 34;
    ExpectRefused(absl::StatusCode::kResourceExhausted, {"KV cache of 17179869184 tokens"},
                  options);
    options.block_size = std::numeric_limits<int>::max() - 15;
    ExpectRefused(kInvalidArgument, {"block_size"}, options);
  }
}

TEST_F(LoadModelTest, RoundsTheCacheUpToWholeBlocks) {
  ModelOptions options = SmallOptions();
  options.kv_cache_tokens = 33;
  const auto model = Load(options);
  ASSERT_TRUE(model.ok()) << model.status();
  const KvCacheLayout& layout = (*model)->cache_layout();
  EXPECT_EQ(layout.num_blocks, 3);
  EXPECT_EQ(layout.block_size, 16);
  EXPECT_EQ(layout.num_layers, 2);
  EXPECT_EQ(layout.num_kv_heads, 2);
  EXPECT_EQ(layout.head_dim, 10);
  EXPECT_EQ((*model)->options().kv_cache_tokens, 33);
  EXPECT_EQ((*model)->num_logits(), 0);
}

TEST_F(LoadModelTest, TheCacheTakesWhatItsTypeTakes) {
  const auto backend = CreateBackend("cpu", {.num_threads = 1});
  // Bytes of a key or value of 10 dimensions; scales are of two.
  const std::pair<KvCacheType, int64_t> kExpected[] = {{KvCacheType::kFp16, 20},
                                                       {KvCacheType::kInt8, 10 + 2},
                                                       {KvCacheType::kInt4, 5 + 2},
                                                       {KvCacheType::kFp32, 40}};
  for (const auto& [type, row_bytes] : kExpected) {
    ModelOptions options = SmallOptions();
    options.kv_cache_type = type;
    const auto model = Load(options);
    ASSERT_TRUE(model.ok()) << model.status();
    const auto checkpoint = Checkpoint::Open(folder_.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    // Keys and values of two layers and two key heads.
    const int64_t expected = 2048 * 2 * 2 * 2 * row_bytes;
    EXPECT_EQ((*model)->cache_layout().total_bytes(), expected) << KvCacheTypeName(type);
    EXPECT_EQ(EstimateMemory(**checkpoint, options, **backend).kv_cache, expected);
  }
}

TEST_F(LoadModelTest, AccountsForItsMemory) {
  ModelOptions options = SmallOptions();
  options.kv_cache_type = KvCacheType::kFp16;
  const auto model = Load(options);
  ASSERT_TRUE(model.ok()) << model.status();
  const MemoryUsage usage = (*model)->memory_usage();
  int64_t weights = 0;
  int64_t embedding = 0;
  for (const auto& [name, tensor] : tiny_.tensors) {
    const auto size = static_cast<int64_t>(tensor.values.size());
    if (name == "lm_head.weight" || name == "model.embed_tokens.weight") {
      embedding += size * 2;
    } else {
      weights += size * (tensor.shape.size() == 1 ? 4 : 2);  // norms and biases as float
    }
  }
  EXPECT_EQ(usage.weights, weights);
  EXPECT_EQ(usage.embedding, embedding);
  EXPECT_EQ(usage.total(), usage.weights + usage.embedding + usage.kv_cache + usage.workspace);

  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto backend = CreateBackend("cpu", {.num_threads = 1});
  const MemoryUsage planned = EstimateMemory(**checkpoint, options, **backend);
  EXPECT_EQ(planned.weights, weights);
  EXPECT_EQ(planned.embedding, embedding);
  EXPECT_EQ(planned.kv_cache, 2048 * 2 * 2 * 2 * 10 * 2);
  // Residual stream, prepared input of the widest site, q k v, gate and up; logits.
  EXPECT_EQ(planned.workspace, 512 * 4 * (40 + 56 + (4 + 2 + 2) * 10 + 2 * 56) + 512 * 61 * 4);

  // Pages come with use.
  const std::vector<int32_t> ids = {1, 2, 3};
  const std::vector<BlockId> blocks = {0};
  const SequenceSlice slice = {ids, 0, blocks, 1};
  ASSERT_TRUE((*model)->Forward(absl::MakeConstSpan(&slice, 1)).ok());
  const MemoryUsage used = (*model)->memory_usage();
  EXPECT_GT(used.kv_cache, usage.kv_cache);
  EXPECT_GT(used.workspace, usage.workspace);
  EXPECT_LE(used.kv_cache, planned.kv_cache);
  EXPECT_LE(used.workspace, planned.workspace);

  tiny_ = MakeTinyModel(TinyConfig(), {DType::kF32});
  const auto tied = Load();
  ASSERT_TRUE(tied.ok()) << tied.status();
  EXPECT_EQ((*tied)->memory_usage().embedding, 61 * 40 * 4) << "a tied head is counted once";
}

TEST_F(LoadModelTest, PlansAKvCacheThatFits) {
  tiny_.Write(folder_.path());
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto backend = CreateBackend("cpu", {.num_threads = 1});
  ModelOptions options = SmallOptions();
  options.kv_cache_tokens = options.block_size;
  const MemoryUsage least = EstimateMemory(**checkpoint, options, **backend);
  const int64_t token_bytes = least.kv_cache / options.block_size;
  const int64_t fixed = least.total() - least.kv_cache;
  const int64_t context = (*checkpoint)->config().max_position_embeddings;

  const auto plan = [&](int64_t available_bytes, int64_t max_sequences) {
    return PlanKvCacheTokens(**checkpoint, options, **backend, {available_bytes, max_sequences});
  };
  // All sequences in full, or half of what is left, or one block.
  EXPECT_EQ(*plan(int64_t{1} << 40, 3), 3 * context);
  EXPECT_EQ(*plan(fixed + 200 * token_bytes, 64), 100);
  EXPECT_EQ(*plan(least.total(), 64), options.block_size);
  const absl::Status status = plan(least.total() - 1, 64).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_THAT(std::string(status.message()),
              ::testing::AllOf(HasSubstr(std::to_string(least.total()) + " bytes needed"),
                               HasSubstr(std::to_string(least.total() - 1) + " bytes")));
}

}  // namespace
}  // namespace ultrasketch
