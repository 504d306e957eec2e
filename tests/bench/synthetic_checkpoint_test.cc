#include "engine/bench/synthetic_checkpoint.h"

#include <cmath>
#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/file.h"
#include "engine/bench/model_presets.h"
#include "engine/models/model.h"
#include "tests/base/temporary_folder.h"

namespace ultrasketch {
namespace {

TEST(SyntheticCheckpointTest, IsAModelThatRuns) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/model";
  ASSERT_TRUE(WriteSyntheticCheckpoint("tiny", path, {}).ok());
  const auto checkpoint = Checkpoint::Open(path);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto backend = CreateBackend("cpu", {});
  ASSERT_TRUE(backend.ok());
  const auto model = LoadModel(*checkpoint, *backend, {});
  ASSERT_TRUE(model.ok()) << model.status();
  const std::vector<int32_t> ids = {1, 2, 3};
  const std::vector<BlockId> blocks = {0};
  ASSERT_TRUE((*model)->Forward({{ids, 0, blocks, 1}}).ok());
  std::vector<float> logits(1024);
  ASSERT_TRUE((*model)->CopyLogits(0, absl::MakeSpan(logits)).ok());
  double energy = 0;
  for (const float logit : logits) energy += static_cast<double>(logit) * logit;
  EXPECT_GT(energy, 0);
  EXPECT_TRUE(std::isfinite(energy));
}

TEST(SyntheticCheckpointTest, IsAFunctionOfTheSeed) {
  const TemporaryFolder folder;
  const auto write = [&](const std::string& name, uint64_t seed) {
    SyntheticOptions options;
    options.seed = seed;
    EXPECT_TRUE(WriteSyntheticCheckpoint("tiny", folder.path() + "/" + name, options).ok());
    return *ReadFile(folder.path() + "/" + name + "/model-00002-of-00002.safetensors");
  };
  const std::string first = write("a", 1);
  EXPECT_TRUE(write("b", 1) == first);
  EXPECT_FALSE(write("c", 2) == first);
}

TEST(SyntheticCheckpointTest, LeavesNothingBehindWhenItFails) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/model";
  SyntheticOptions options;
  options.tokenizer_folder = folder.path() + "/absent";
  EXPECT_EQ(WriteSyntheticCheckpoint("tiny", path, options).code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(std::filesystem::exists(path));
  const absl::Status unknown = WriteSyntheticCheckpoint("llama-9", path, {});
  EXPECT_THAT(std::string(unknown.message()),
              testing::AllOf(testing::HasSubstr("llama-3.2-1b"), testing::HasSubstr("llama-9")));
}

}  // namespace
}  // namespace ultrasketch
