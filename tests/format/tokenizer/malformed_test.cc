// Files that are not what they should be.
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include <nlohmann/json.hpp>

#include "engine/base/file.h"
#include "engine/base/strings.h"
#include "engine/format/tokenizer/tokenizer.h"

namespace ultrasketch {
namespace {

using nlohmann::json;
using testing::HasSubstr;

json ValidDocument() {
  return json::parse(R"json({
    "added_tokens": [{"id": 4, "content": "<s>", "single_word": false, "lstrip": false,
                      "rstrip": false, "normalized": false, "special": true}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "\\s"}, "behavior": "Isolated"},
    "post_processor": {
      "type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                 {"Sequence": {"id": "A", "type_id": 0}}],
      "special_tokens": {"<s>": {"id": "<s>", "ids": [4], "tokens": ["<s>"]}}},
    "decoder": {"type": "Fuse"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, " ": 3}, "merges": [["a", "b"]]}
  })json");
}

absl::Status ParseStatus(const json& document) {
  return Tokenizer::Parse(document.dump(), "tokenizer.json").status();
}

// For the document with the value at `pointer` replaced.
absl::Status StatusWith(const std::string& pointer, const json& value) {
  json document = ValidDocument();
  document[json::json_pointer(pointer)] = value;
  return ParseStatus(document);
}

MATCHER_P2(IsStatus, code, text, "") {
  *result_listener << arg;
  return arg.code() == code && S(arg.message()).find(text) != std::string_view::npos;
}

constexpr auto kDataLoss = absl::StatusCode::kDataLoss;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

TEST(MalformedTokenizerTest, TheDocumentOfTheseTestsIsValid) {
  EXPECT_TRUE(ParseStatus(ValidDocument()).ok()) << ParseStatus(ValidDocument());
}

TEST(MalformedTokenizerTest, NamesAMissingFile) {
  EXPECT_THAT(Tokenizer::Load("/nonexistent/tokenizer.json").status(),
              IsStatus(absl::StatusCode::kNotFound, "/nonexistent/tokenizer.json"));
}

TEST(MalformedTokenizerTest, RejectsEveryTruncation) {
  const std::string text = ValidDocument().dump();
  for (size_t size = 0; size < text.size(); ++size) {
    EXPECT_THAT(Tokenizer::Parse(text.substr(0, size), "tokenizer.json").status(),
                IsStatus(kDataLoss, "tokenizer.json"))
        << size;
  }
}

TEST(MalformedTokenizerTest, RejectsDeepNesting) {
  std::string brackets(100000, '[');
  EXPECT_THAT(Tokenizer::Parse(brackets, "tokenizer.json").status(),
              IsStatus(kDataLoss, "tokenizer.json"));
  EXPECT_THAT(Tokenizer::Parse("{\"model\":" + brackets, "tokenizer.json").status(),
              IsStatus(kDataLoss, "tokenizer.json"));
}

// Whatever value is replaced by one of another type, the answer is a status that names the file.
TEST(MalformedTokenizerTest, SurvivesWrongTypesEverywhere) {
  const json flat = ValidDocument().flatten();
  const json replacements[] = {nullptr,
                               true,
                               -1,
                               1e300,
                               "x",
                               json::array(),
                               {{1}},
                               {{"", 1}},
                               18446744073709551615u,
                               {{"type", "Sequence"}}};
  for (const auto& [pointer, ignored] : flat.items()) {
    for (json::json_pointer place(pointer); !place.empty(); place.pop_back()) {
      for (const json& replacement : replacements) {
        const absl::Status status = StatusWith(place.to_string(), replacement);
        if (status.ok()) continue;
        EXPECT_TRUE(status.code() == kDataLoss || status.code() == kUnimplemented) << status;
        EXPECT_THAT(std::string(S(status.message())), HasSubstr("tokenizer.json: "));
      }
    }
  }
}

TEST(MalformedTokenizerTest, NamesThePathOfAWrongType) {
  EXPECT_THAT(StatusWith("/model", 1), IsStatus(kDataLoss, "tokenizer.json: model: "));
  EXPECT_THAT(StatusWith("/model/vocab", json::array()), IsStatus(kDataLoss, "model.vocab: "));
  EXPECT_THAT(StatusWith("/model/vocab/ab", "2"), IsStatus(kDataLoss, "model.vocab.ab: "));
  EXPECT_THAT(StatusWith("/added_tokens/0/lstrip", 1),
              IsStatus(kDataLoss, "added_tokens[0].lstrip: "));
  EXPECT_THAT(StatusWith("/normalizer/normalizers/0/type", 7),
              IsStatus(kDataLoss, "normalizer.normalizers[0].type: "));
}

TEST(MalformedTokenizerTest, RejectsIdsOutOfRange) {
  EXPECT_THAT(StatusWith("/model/vocab/ab", -1), IsStatus(kDataLoss, "model.vocab.ab: "));
  EXPECT_THAT(StatusWith("/model/vocab/ab", 4294967296), IsStatus(kDataLoss, "model.vocab.ab: "));
  EXPECT_THAT(StatusWith("/model/vocab/ab", 2147483647), IsStatus(kDataLoss, "model.vocab.ab: "));
  EXPECT_THAT(StatusWith("/model/vocab/ab", 1.5), IsStatus(kDataLoss, "model.vocab.ab: "));
  EXPECT_THAT(StatusWith("/added_tokens/0/id", 18446744073709551615u),
              IsStatus(kDataLoss, "added_tokens[0].id: "));
}

TEST(MalformedTokenizerTest, RejectsDuplicateIdsAndTokens) {
  EXPECT_THAT(StatusWith("/model/vocab/ab", 1), IsStatus(kDataLoss, "same id 1"));
  EXPECT_THAT(StatusWith("/added_tokens/0/id", 2), IsStatus(kDataLoss, "added_tokens[0].id"));
  EXPECT_THAT(StatusWith("/added_tokens/0/content", "ab"),
              IsStatus(kDataLoss, "\"ab\" has id 4 here and 2"));
  json twice = ValidDocument();
  twice["added_tokens"].push_back(twice["added_tokens"][0]);
  EXPECT_THAT(ParseStatus(twice), IsStatus(kDataLoss, "added_tokens[1].id: id 4 occurs twice"));
  twice["added_tokens"][1]["id"] = 5;
  EXPECT_THAT(ParseStatus(twice), IsStatus(kDataLoss, "\"<s>\" occurs twice"));
}

TEST(MalformedTokenizerTest, RejectsMergesOfUnknownTokens) {
  EXPECT_THAT(StatusWith("/model/merges/0/1", "z"),
              IsStatus(kDataLoss, "model.merges[0]: token \"z\""));
  EXPECT_THAT(StatusWith("/model/merges/0", json::array({"b", "a"})),
              IsStatus(kDataLoss, "token \"ba\" is not in the vocabulary"));
  EXPECT_THAT(StatusWith("/model/merges/0", "ab"), IsStatus(kDataLoss, "model.merges[0]: "));
  EXPECT_THAT(StatusWith("/model/merges/0", "a b b"), IsStatus(kDataLoss, "model.merges[0]: "));
  EXPECT_THAT(StatusWith("/model/merges/0", json::array({"a"})),
              IsStatus(kDataLoss, "model.merges[0]: expected two tokens"));
}

TEST(MalformedTokenizerTest, RejectsTemplatesOfUnknownTokens) {
  EXPECT_THAT(StatusWith("/post_processor/special_tokens/<s>/ids/0", 9),
              IsStatus(kDataLoss, "no token has the template's id 9"));
  EXPECT_THAT(StatusWith("/post_processor/special_tokens", json::object()),
              IsStatus(kDataLoss, "post_processor.special_tokens: "));
  EXPECT_THAT(StatusWith("/post_processor/single/1/Sequence/id", "B"),
              IsStatus(kDataLoss, "post_processor.single[1].Sequence.id: "));
}

TEST(MalformedTokenizerTest, RefusesUnsupportedComponentsByName) {
  EXPECT_THAT(StatusWith("/normalizer/type", "BertNormalizer"),
              IsStatus(kUnimplemented, "normalizer \"BertNormalizer\""));
  EXPECT_THAT(StatusWith("/pre_tokenizer/type", "UnicodeScripts"),
              IsStatus(kUnimplemented, "pre-tokenizer \"UnicodeScripts\""));
  EXPECT_THAT(StatusWith("/post_processor/type", "BertProcessing"),
              IsStatus(kUnimplemented, "post-processor \"BertProcessing\""));
  EXPECT_THAT(StatusWith("/decoder/type", "CTC"), IsStatus(kUnimplemented, "decoder \"CTC\""));
  EXPECT_THAT(StatusWith("/model/type", "Unigram"), IsStatus(kUnimplemented, "model \"Unigram\""));
  EXPECT_THAT(StatusWith("/model/dropout", 0.1), IsStatus(kUnimplemented, "model.dropout: "));
  EXPECT_THAT(StatusWith("/model/continuing_subword_prefix", "##"),
              IsStatus(kUnimplemented, "continuing_subword_prefix \"##\""));
  EXPECT_THAT(StatusWith("/model/end_of_word_suffix", "</w>"),
              IsStatus(kUnimplemented, "end_of_word_suffix \"</w>\""));
}

TEST(MalformedTokenizerTest, RefusesRegularExpressionsThatItCannotRunAlike) {
  for (const char* expression :
       {"(", "[a", "[a&&b]", "[a[b]]", "(?~a)", "(*FAIL)", "a(?i)b|c", "\\X", "\\K", "[\\W]",
        "\\p{NoSuchProperty}", "(?<=a+)b", "\\", "a**"}) {
    EXPECT_THAT(StatusWith("/pre_tokenizer/pattern/Regex", expression),
                IsStatus(kUnimplemented, "pre_tokenizer.pattern.Regex: regular expression"))
        << expression;
  }
  EXPECT_THAT(StatusWith("/pre_tokenizer/pattern/Regex", std::string(100000, 'a')),
              IsStatus(kUnimplemented, "longer than 64 KiB"));
}

TEST(MalformedTokenizerTest, AcceptsFilesWithoutOptionalParts) {
  const auto tokenizer =
      Tokenizer::Parse(R"({"model": {"vocab": {"a": 0}, "merges": []}})", "tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(*(*tokenizer)->Encode("aa"), testing::ElementsAre(0, 0));
  EXPECT_EQ((*tokenizer)->Decode({0, 0}, false), "a a");
}

}  // namespace
}  // namespace ultrasketch
