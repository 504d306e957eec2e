// Encoding and decoding against the recorded answers of the `tokenizers` library (see
// tests/data/tokenizer/make_oracles.py).
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include <nlohmann/json.hpp>

#include "engine/base/file.h"
#include "engine/format/tokenizer/tokenizer.h"

namespace ultrasketch {
namespace {

using nlohmann::json;

struct Oracle {
  std::string name;
  std::string tokenizer;  // path
  std::string cases;      // path of a list of {text?, ids, decoded?, decoded_skip?, add?, parse?}
};

std::string DataPath(const std::string& name) {
  return std::string(TEST_DATA_DIR) + "/tokenizer/" + name;
}

void CheckEncoding(const Tokenizer& tokenizer, const json& cases) {
  for (const json& test_case : cases) {
    if (!test_case.contains("text")) continue;
    EncodeOptions options;
    options.add_special_tokens = test_case.value("add", true);
    options.parse_special_tokens = test_case.value("parse", true);
    const auto ids = tokenizer.Encode(test_case["text"].get<std::string>(), options);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, test_case["ids"].get<std::vector<int32_t>>()) << test_case["text"];
  }
}

void CheckDecoding(const Tokenizer& tokenizer, const json& cases) {
  for (const json& test_case : cases) {
    if (!test_case.contains("decoded")) continue;
    const auto ids = test_case["ids"].get<std::vector<int32_t>>();
    const auto text = test_case["decoded"].get<std::string>();
    EXPECT_EQ(tokenizer.Decode(ids, /*skip_special_tokens=*/false), text) << test_case["ids"];
    if (!test_case.contains("decoded_skip")) continue;
    EXPECT_EQ(tokenizer.Decode(ids, /*skip_special_tokens=*/true),
              test_case["decoded_skip"].get<std::string>())
        << test_case["ids"];
  }
}

void CheckStreaming(const Tokenizer& tokenizer, const json& cases) {
  for (const json& test_case : cases) {
    const auto ids = test_case["ids"].get<std::vector<int32_t>>();
    for (const bool skip_special_tokens : {false, true}) {
      DetokenizerStream stream(tokenizer, skip_special_tokens);
      std::string text;
      for (const int32_t id : ids) text += stream.Add(id);
      text += stream.Finish();
      EXPECT_EQ(text, tokenizer.Decode(ids, skip_special_tokens)) << test_case["ids"];
    }
  }
}

class OracleTest : public testing::TestWithParam<Oracle> {
 protected:
  void SetUp() override {
    auto tokenizer = Tokenizer::Load(GetParam().tokenizer);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
    const auto contents = ReadFile(GetParam().cases);
    ASSERT_TRUE(contents.ok()) << contents.status();
    cases_ = json::parse(*contents);
    ASSERT_GE(cases_.size(), 50u);
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  json cases_;
};

TEST_P(OracleTest, EncodesLikeTheLibrary) { CheckEncoding(*tokenizer_, cases_); }
TEST_P(OracleTest, DecodesLikeTheLibrary) { CheckDecoding(*tokenizer_, cases_); }
TEST_P(OracleTest, StreamsWhatDecodeGives) { CheckStreaming(*tokenizer_, cases_); }

std::vector<Oracle> Oracles() {
  std::vector<Oracle> oracles = {{"classics", std::string(SAMPLE_MODEL_DIR) + "/tokenizer.json",
                                  DataPath("classics-oracle.json")}};
  for (const std::string name :
       {"gpt2", "llama2", "llama2-normalized", "llama3", "metaspace", "mistral", "qwen2"}) {
    oracles.push_back({name, DataPath(name + ".json"), DataPath(name + "-oracle.json")});
  }
  return oracles;
}

INSTANTIATE_TEST_SUITE_P(All, OracleTest, testing::ValuesIn(Oracles()),
                         [](const testing::TestParamInfo<Oracle>& oracle) {
                           std::string name = oracle.param.name;
                           std::erase(name, '-');
                           return name;
                         });

// One small model with every combination of components that the styles above do not have.
TEST(ComponentOracleTest, EncodesAndDecodesLikeTheLibrary) {
  const auto contents = ReadFile(DataPath("components-oracle.json"));
  ASSERT_TRUE(contents.ok()) << contents.status();
  const json document = json::parse(*contents);
  ASSERT_GE(document["components"].size(), 60u);
  for (const json& component : document["components"]) {
    json description = component["tokenizer"];
    for (const char* shared : {"vocab", "merges"}) {
      json& model = description["model"];
      if (!model.contains(shared)) model[shared] = document[shared];
    }
    if (!description.contains("added_tokens")) {
      description["added_tokens"] = document["added_tokens"];
    }
    const auto tokenizer = Tokenizer::Parse(description.dump(), "tokenizer.json");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    SCOPED_TRACE(component["tokenizer"].dump());
    CheckEncoding(**tokenizer, component["cases"]);
    CheckDecoding(**tokenizer, component["cases"]);
    CheckStreaming(**tokenizer, component["cases"]);
  }
}

}  // namespace
}  // namespace ultrasketch
