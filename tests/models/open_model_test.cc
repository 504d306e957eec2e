#include "engine/models/open_model.h"

#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/base/temporary_folder.h"
#include "tests/models/tiny_model.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
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

  static constexpr char kTokenizers[] = TEST_DATA_DIR "/tokenizer/";

  // A model of `vocab_size` words with one of the test tokenizers.
  void Write(const std::string& tokenizer, int vocab_size, const nlohmann::json& changes = {}) {
    nlohmann::json config = TinyConfig();
    config["vocab_size"] = vocab_size;
    config.erase("eos_token_id");
    if (changes.is_object()) config.update(changes);
    MakeTinyModel(config, {DType::kF32}).Write(folder_.path());
    std::filesystem::copy_file(kTokenizers + tokenizer, folder_.File("tokenizer.json"),
                               std::filesystem::copy_options::overwrite_existing);
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

TEST_F(OpenModelTest, AddsTheTokenizersEndToken) {
  Write("metaspace.json", 322);
  folder_.Write("tokenizer_config.json", R"({"eos_token": "</s>"})");
  auto model = OpenModel(folder_.path());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(model->eos_token_ids, ElementsAre(2));
  EXPECT_THAT(model->warnings, IsEmpty());

  Write("metaspace.json", 322, {{"eos_token_id", 5}});
  EXPECT_THAT(OpenModel(folder_.path())->eos_token_ids, ElementsAre(5, 2));
  folder_.Write("generation_config.json", R"({"eos_token_id": [7, 2]})");
  EXPECT_THAT(OpenModel(folder_.path())->eos_token_ids, ElementsAre(7, 2));
}

TEST_F(OpenModelTest, WarnsOfAModelWithoutAnEndToken) {
  Write("metaspace.json", 322);
  auto model = OpenModel(folder_.path());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(model->eos_token_ids, IsEmpty());
  EXPECT_THAT(model->warnings, ElementsAre(HasSubstr("no end token")));

  folder_.Write("tokenizer_config.json", R"({"eos_token": "<x>"})");
  Write("metaspace.json", 321);
  model = OpenModel(folder_.path());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(model->eos_token_ids, IsEmpty());
  EXPECT_THAT(model->warnings, ElementsAre(HasSubstr("beyond"), HasSubstr("eos_token is token 321"),
                                           HasSubstr("no end token")));
}

TEST_F(OpenModelTest, WarnsOfTokensThatOnlySomeTextsHave) {
  Write("metaspace.json", 320, {{"eos_token_id", 2}});
  const auto model = OpenModel(folder_.path());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(model->warnings, ElementsAre(AllOf(HasSubstr("2 tokens are beyond"),
                                                 HasSubstr("New York"), HasSubstr("320 rows"))));
}

TEST_F(OpenModelTest, RefusesAModelThatNoTextCanReach) {
  Write("llama3.json", 560, {{"eos_token_id", 2}});
  const absl::Status status = OpenModel(folder_.path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(folder_.File("tokenizer.json")), HasSubstr("token 562"),
                    HasSubstr("<|begin_of_text|>"), HasSubstr("560 rows")));
  const auto measured = OpenModel(folder_.path(), {.needs_tokenizer = false});
  ASSERT_TRUE(measured.ok()) << measured.status();
  EXPECT_THAT(measured->warnings.front(), HasSubstr("token 562"));
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

TEST_F(OpenModelTest, OpensTheChatTemplate) {
  Write("metaspace.json", 322, {{"eos_token_id", 2}});
  const auto without = OpenModel(folder_.path());
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_EQ(without->chat_template.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(without->chat_template.status().message()),
              HasSubstr("has no chat template"));
  EXPECT_THAT(without->warnings, IsEmpty());

  folder_.Write("chat_template.jinja", "{{ messages[0].content }}!");
  const auto with = OpenModel(folder_.path());
  ASSERT_TRUE(with.ok() && with->chat_template.ok()) << with.status();
  const std::vector<ChatMessage> messages = {{"user", "Hi"}};
  EXPECT_EQ((*with->chat_template)->Render(messages)->text, "Hi!");
}

TEST_F(OpenModelTest, WarnsOfAChatTemplateThatCannotBeUsed) {
  Write("metaspace.json", 322, {{"eos_token_id", 2}});
  folder_.Write("chat_template.jinja", "{% include 'x' %}");
  const auto model = OpenModel(folder_.path());
  ASSERT_TRUE(model.ok()) << model.status();
  const std::string reason =
      folder_.File("chat_template.jinja") + ":1:4: statement \"include\" is not supported";
  EXPECT_EQ(model->chat_template.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(model->chat_template.status().message()), HasSubstr(reason));
  EXPECT_THAT(model->warnings, ElementsAre(HasSubstr(reason)));
}

}  // namespace
}  // namespace ultrasketch
