// The tokenizer of a folder against the recorded answers of transformers (see
// tests/data/tokenizer/make_prefix_space_oracle.py), and what is wrong with the files beside it.
#include "engine/format/tokenizer/tokenizer_folder.h"

#include <filesystem>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/base/file.h"
#include "tests/base/temporary_folder.h"

namespace ultrasketch {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string DataPath(const std::string& name) {
  return std::string(TEST_DATA_DIR) + "/tokenizer/" + name;
}

class TokenizerFolderTest : public ::testing::Test {
 protected:
  void UseTokenizer(const std::string& style) {
    std::filesystem::copy_file(DataPath(style + ".json"), folder_.File("tokenizer.json"),
                               std::filesystem::copy_options::overwrite_existing);
  }

  FolderTokenizer Load() {
    auto loaded = LoadFolderTokenizer(folder_.path());
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return loaded.ok() ? *std::move(loaded) : FolderTokenizer();
  }

  const TemporaryFolder folder_;
};

TEST_F(TokenizerFolderTest, ObeysAddPrefixSpaceWhereTransformersDoes) {
  const json cases = json::parse(*ReadFile(DataPath("prefix-space-oracle.json")));
  ASSERT_GE(cases.size(), 40u);
  for (const json& test_case : cases) {
    SCOPED_TRACE(test_case.dump());
    UseTokenizer(test_case["tokenizer"]);
    json model = {{"model_type", test_case["model_type"]}};
    if (test_case["model_class"] != "") model["tokenizer_class"] = test_case["model_class"];
    folder_.Write("config.json", model.dump());
    folder_.Write("tokenizer_config.json", test_case["config"].dump());
    const FolderTokenizer loaded = Load();
    ASSERT_NE(loaded.tokenizer, nullptr);
    EXPECT_THAT(loaded.warnings, IsEmpty());
    for (const json& text : test_case["texts"]) {
      const auto ids = loaded.tokenizer->Encode(text["text"].get<std::string>());
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_EQ(*ids, text["ids"].get<std::vector<int32_t>>()) << text["text"];
      EXPECT_EQ(loaded.tokenizer->Decode(*ids, false), text["decoded"]);
    }
  }
}

TEST_F(TokenizerFolderTest, SaysWhereTransformersBuildsAnotherTokenizer) {
  UseTokenizer("llama2");
  EXPECT_THAT(Load().notes, IsEmpty());
  folder_.Write("tokenizer_config.json", R"({"tokenizer_class": "LlamaTokenizerFast"})");
  EXPECT_THAT(Load().notes,
              ElementsAre(AllOf(HasSubstr("LlamaTokenizer"), HasSubstr("transformers"),
                                HasSubstr(folder_.File("tokenizer.json")))));
  // What the class would build is in the file.
  UseTokenizer("mistral");
  EXPECT_THAT(Load().notes, IsEmpty());
  // Byte-level files are used as they are, and so is everything in a model of type mistral.
  UseTokenizer("llama3");
  EXPECT_THAT(Load().notes, IsEmpty());
  UseTokenizer("llama2");
  folder_.Write("config.json", R"({"model_type": "mistral"})");
  EXPECT_THAT(Load().notes, IsEmpty());
  // In one of type qwen2 everything is a Qwen2Tokenizer.
  folder_.Write("config.json", R"({"model_type": "qwen2"})");
  EXPECT_THAT(Load().notes, ElementsAre(HasSubstr("Qwen2Tokenizer")));
  UseTokenizer("llama3");
  EXPECT_THAT(Load().notes, ElementsAre(HasSubstr("Qwen2Tokenizer")));
  UseTokenizer("qwen2");
  EXPECT_THAT(Load().notes, IsEmpty());
}

TEST_F(TokenizerFolderTest, KnowsTheEndToken) {
  UseTokenizer("llama2");
  EXPECT_EQ(Load().eos_token_id, std::nullopt);
  folder_.Write("tokenizer_config.json", R"({"eos_token": "</s>"})");
  EXPECT_EQ(Load().eos_token_id, 2);
  folder_.Write("tokenizer_config.json", R"({"eos_token": {"content": "<unk>", "lstrip": false}})");
  EXPECT_EQ(Load().eos_token_id, 0);
  folder_.Write("tokenizer_config.json", R"({"eos_token": null})");
  EXPECT_EQ(Load().eos_token_id, std::nullopt);
  EXPECT_THAT(Load().warnings, IsEmpty());
}

// As in transformers, special_tokens_map.json is read where the other file is of the older kind.
TEST_F(TokenizerFolderTest, LooksForTheEndTokenInTheMapOfSpecialTokens) {
  UseTokenizer("llama2");
  folder_.Write("special_tokens_map.json", R"({"eos_token": {"content": "</s>"}})");
  EXPECT_EQ(Load().eos_token_id, 2);
  folder_.Write("tokenizer_config.json", R"({"eos_token": "<unk>"})");
  EXPECT_EQ(Load().eos_token_id, 2);
  folder_.Write("tokenizer_config.json", R"({"eos_token": "<unk>", "added_tokens_decoder": {}})");
  EXPECT_EQ(Load().eos_token_id, 0);
}

TEST_F(TokenizerFolderTest, HasTheTokensThatTransformersHas) {
  const json cases = json::parse(*ReadFile(DataPath("folder-tokens-oracle.json")));
  ASSERT_GE(cases.size(), 50u);
  for (const json& test_case : cases) {
    SCOPED_TRACE(test_case.dump());
    UseTokenizer(test_case["tokenizer"]);
    folder_.Write("config.json", json{{"model_type", test_case["model_type"]}}.dump());
    const json& files = test_case["files"];
    for (const std::string name : {"tokenizer_config", "special_tokens_map", "added_tokens"}) {
      folder_.Write(name + ".json", files.contains(name) ? files[name].dump() : "{}");
    }
    const FolderTokenizer loaded = Load();
    ASSERT_NE(loaded.tokenizer, nullptr);
    for (const json& text : test_case["texts"]) {
      const auto ids = loaded.tokenizer->Encode(text["text"].get<std::string>());
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_EQ(*ids, text["ids"].get<std::vector<int32_t>>()) << text["text"];
    }
  }
}

TEST_F(TokenizerFolderTest, ATokenWithoutARowOfTheEmbeddingIsNotAdded) {
  UseTokenizer("llama3");
  folder_.Write("config.json", R"({"model_type": "llama", "vocab_size": 580})");
  folder_.Write("tokenizer_config.json", R"({"eos_token": "<X>", "pad_token": "<Y>"})");
  const FolderTokenizer loaded = Load();
  EXPECT_EQ(loaded.eos_token_id, 579);
  EXPECT_EQ(loaded.tokenizer->TokenToId("<Y>"), std::nullopt);
  EXPECT_THAT(loaded.warnings, ElementsAre(AllOf(HasSubstr("pad_token: \"<Y>\""),
                                                 HasSubstr("580 tokens"), HasSubstr("not used"))));
}

// The ids are those of transformers 5.24.
TEST_F(TokenizerFolderTest, SplitsSpecialTokensWhereTheFileSaysSo) {
  UseTokenizer("llama3");
  EXPECT_THAT(*Load().tokenizer->Encode("a <|eot_id|>"), ElementsAre(562, 64, 220, 566));
  folder_.Write("tokenizer_config.json", R"({"split_special_tokens": true})");
  EXPECT_THAT(*Load().tokenizer->Encode("a <|eot_id|>"),
              ElementsAre(562, 64, 220, 27, 91, 374, 83, 62, 299, 91, 29));
}

TEST_F(TokenizerFolderTest, TakesTheFilesBesideItForAdvice) {
  UseTokenizer("llama2");
  const std::string path = folder_.File("tokenizer_config.json");
  for (const std::string contents :
       {"{", "", "[]", R"({"eos_token": "</s>",})", R"({"eos_token": NaN})", R"({"eos_token": 2})",
        R"({"eos_token": {"id": 2}})", R"({"added_tokens_decoder": {"x": "<x>"}})",
        R"({"extra_special_tokens": "<x>"})", R"({"add_prefix_space": "no"})",
        R"({"tokenizer_class": ["LlamaTokenizer"]})"}) {
    SCOPED_TRACE(contents);
    folder_.Write("tokenizer_config.json", contents);
    const FolderTokenizer loaded = Load();
    ASSERT_NE(loaded.tokenizer, nullptr);
    EXPECT_THAT(loaded.warnings, ElementsAre(AllOf(HasSubstr(path), HasSubstr("not used"))));
    EXPECT_EQ(loaded.eos_token_id, std::nullopt);
  }
}

}  // namespace
}  // namespace ultrasketch
