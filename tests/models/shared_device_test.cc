// Models whose backends share a device: they compute in turns, in the same memory.
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/backends/backend.h"
#include "tests/base/temporary_folder.h"
#include "tests/models/tiny_model.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;

struct LoadedModel {
  std::shared_ptr<Backend> backend;
  std::unique_ptr<Model> model;
};

LoadedModel Load(const TinyModel& tiny, std::shared_ptr<Backend> beside, int64_t max_step_tokens) {
  const TemporaryFolder folder;
  tiny.Write(folder.path());
  LoadedModel loaded;
  loaded.backend = *CreateBackend("cpu", {.num_threads = 2, .beside = std::move(beside)});
  ModelOptions options = SmallOptions();
  options.max_step_tokens = max_step_tokens;
  auto model = LoadModel(*Checkpoint::Open(folder.path()), loaded.backend, options);
  EXPECT_TRUE(model.ok()) << model.status();
  loaded.model = *std::move(model);
  return loaded;
}

class SharedDeviceTest : public ::testing::Test {
 protected:
  SharedDeviceTest() {
    nlohmann::json config = TinyConfig();
    small_ = MakeTinyModel(config, {DType::kBF16}, 1);
    config.merge_patch(
        nlohmann::json::parse(R"({"hidden_size": 72, "intermediate_size": 150, "head_dim": 22})"));
    large_ = MakeTinyModel(config, {DType::kBF16}, 2);
  }

  TinyModel small_;
  TinyModel large_;
  const std::vector<int32_t> ids_ = RandomTokens(40, 61, 3);
};

TEST_F(SharedDeviceTest, ModelsInTurnsComputeWhatEachComputesAlone) {
  const auto expected_small = AllLogits(*Load(small_, nullptr, 64).model, ids_);
  const auto expected_large = AllLogits(*Load(large_, nullptr, 64).model, ids_);
  const LoadedModel small = Load(small_, nullptr, 64);
  EXPECT_EQ(AllLogits(*small.model, ids_), expected_small);
  {
    // Needs more, and comes while the other is there.
    const LoadedModel large = Load(large_, small.backend, 64);
    for (int i = 0; i < 2; ++i) {
      EXPECT_EQ(AllLogits(*small.model, ids_), expected_small);
      EXPECT_EQ(AllLogits(*large.model, ids_), expected_large);
    }
  }
  EXPECT_EQ(AllLogits(*small.model, ids_), expected_small);
}

TEST_F(SharedDeviceTest, TheFirstModelMayLeaveBeforeTheOthers) {
  const auto expected = AllLogits(*Load(large_, nullptr, 64).model, ids_);
  LoadedModel small = Load(small_, nullptr, 64);
  const LoadedModel large = Load(large_, small.backend, 64);
  AllLogits(*small.model, ids_);
  small = {};
  EXPECT_EQ(AllLogits(*large.model, ids_), expected);
}

TEST_F(SharedDeviceTest, TheWorkspaceIsNoLargerForTwoThanForTheLarger) {
  constexpr int64_t kTokens = 4096;
  const std::vector<int32_t> ids = RandomTokens(100, 61, 3);
  const LoadedModel first = Load(large_, nullptr, kTokens);
  const LoadedModel second = Load(large_, first.backend, kTokens);
  AllLogits(*first.model, ids);
  const int64_t alone = first.model->memory_usage().workspace;
  EXPECT_GT(alone, 0);
  AllLogits(*second.model, ids);
  // Both tell of the same memory.
  EXPECT_EQ(first.model->memory_usage().workspace, alone);
  EXPECT_EQ(second.model->memory_usage().workspace, alone);
}

TEST_F(SharedDeviceTest, BackendsShareThreadsWhateverTheNumberThatIsAskedFor) {
  const auto first = CreateBackend("cpu", {.num_threads = 3});
  ASSERT_TRUE(first.ok());
  const auto second = CreateBackend("auto", {.num_threads = 1, .beside = *first});
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ((*second)->description(), (*first)->description());
}

TEST_F(SharedDeviceTest, ABackendOfAnotherDeviceIsRefused) {
  const auto first = CreateBackend("cpu", {.num_threads = 1});
  ASSERT_TRUE(first.ok());
  const absl::Status status = CreateBackend("cuda:7", {.beside = *first}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("a backend of cuda:7, found one of cpu"));
}

}  // namespace
}  // namespace ultrasketch
