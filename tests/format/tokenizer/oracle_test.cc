// Encoding and decoding against the answers of the `tokenizers` library, recorded by
// tests/data/tokenizer/make_oracles.py.
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

TEST_P(OracleTest, EncodesLikeTheLibrary) {
  for (const json& test_case : cases_) {
    if (!test_case.contains("text")) continue;
    EncodeOptions options;
    options.add_special_tokens = test_case.value("add", true);
    options.parse_special_tokens = test_case.value("parse", true);
    const auto ids = tokenizer_->Encode(test_case["text"].get<std::string>(), options);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, test_case["ids"].get<std::vector<int32_t>>()) << test_case["text"];
  }
}

TEST_P(OracleTest, DecodesLikeTheLibrary) {
  for (const json& test_case : cases_) {
    const auto ids = test_case["ids"].get<std::vector<int32_t>>();
    for (const bool skip_special_tokens : {false, true}) {
      const char* key = skip_special_tokens ? "decoded_skip" : "decoded";
      if (!test_case.contains(key)) continue;
      EXPECT_EQ(tokenizer_->Decode(ids, skip_special_tokens), test_case[key].get<std::string>())
          << test_case["ids"];
    }
  }
}

TEST_P(OracleTest, StreamsWhatDecodeGives) {
  for (const json& test_case : cases_) {
    const auto ids = test_case["ids"].get<std::vector<int32_t>>();
    DetokenizerStream stream(*tokenizer_, /*skip_special_tokens=*/false);
    std::string text;
    for (const int32_t id : ids) text += stream.Add(id);
    text += stream.Finish();
    EXPECT_EQ(text, tokenizer_->Decode(ids, /*skip_special_tokens=*/false)) << test_case["ids"];
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, OracleTest,
    testing::Values(Oracle{"Classics", std::string(SAMPLE_MODEL_DIR) + "/tokenizer.json",
                           DataPath("classics-oracle.json")},
                    Oracle{"Llama2", DataPath("llama2.json"), DataPath("llama2-oracle.json")}),
    [](const testing::TestParamInfo<Oracle>& oracle) { return oracle.param.name; });

}  // namespace
}  // namespace ultrasketch
