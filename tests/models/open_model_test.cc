#include "engine/models/open_model.h"

#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/base/temporary_folder.h"
#include "tests/models/tiny_model.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class OpenModelTest : public ::testing::Test {
 protected:
  OpenModelTest() {
    MakeTinyModel(TinyConfig(), {DType::kF32}).Write(folder_.path());
    std::filesystem::copy(std::string(SAMPLE_MODEL_DIR) + "/tokenizer.json",
                          folder_.File("tokenizer.json"));
  }

  const TemporaryFolder folder_;
};

TEST_F(OpenModelTest, OpensTheSampleModelWithoutWarnings) {
  const auto model = OpenModel(SAMPLE_MODEL_DIR);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->checkpoint->config().vocab_size, 8192);
  EXPECT_EQ(model->tokenizer->vocab_size(), 8192);
  EXPECT_THAT(model->eos_token_ids, ElementsAre(0));
  EXPECT_THAT(model->warnings, IsEmpty());
}

TEST_F(OpenModelTest, PassesOnTheCheckpointsWarnings) {
  folder_.Write("generation_config.json", "{");
  const auto model = OpenModel(folder_.path());
  ASSERT_TRUE(model.ok()) << model.status();
  ASSERT_FALSE(model->warnings.empty());
  EXPECT_THAT(model->warnings.front(), HasSubstr(folder_.File("generation_config.json")));
}

TEST_F(OpenModelTest, NeedsATokenizerUnlessToldOtherwise) {
  std::filesystem::remove(folder_.File("tokenizer.json"));
  EXPECT_EQ(OpenModel(folder_.path()).status().code(), absl::StatusCode::kNotFound);
  const auto without = OpenModel(folder_.path(), {.needs_tokenizer = false});
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_EQ(without->tokenizer, nullptr);

  folder_.Write("tokenizer.json", "{");
  EXPECT_EQ(OpenModel(folder_.path()).status().code(), absl::StatusCode::kDataLoss);
  const auto broken = OpenModel(folder_.path(), {.needs_tokenizer = false});
  ASSERT_TRUE(broken.ok()) << broken.status();
  EXPECT_EQ(broken->tokenizer, nullptr);
  EXPECT_THAT(broken->warnings, ElementsAre(HasSubstr(folder_.File("tokenizer.json"))));
}

}  // namespace
}  // namespace ultrasketch
