#include "engine/format/json.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/base/temporary_folder.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

void ExpectRejected(std::string_view text, const std::string& part) {
  const auto value = ParseJson(text, "a.json");
  EXPECT_EQ(value.status().code(), absl::StatusCode::kDataLoss) << text;
  EXPECT_THAT(std::string(value.status().message()), AllOf(HasSubstr("a.json: "), HasSubstr(part)));
}

std::string Nested(int depth) { return std::string(depth, '[') + std::string(depth, ']'); }

TEST(JsonTest, BuildsWhatNlohmannBuilds) {
  for (const char* text : {"null", "true", "-3", "18446744073709551615", "1.5e3", "\"x\\u00e9\"",
                           "[]", "{}", R"([1,[2,[]],{"a":{"b":[null]},"c":[{},{"d":false}]},"e"])",
                           R"({"a":1,"b":{"a":2},"c":[{"a":3},{"a":4}],"":0})"}) {
    const auto value = ParseJson(text, "a.json");
    ASSERT_TRUE(value.ok()) << value.status();
    EXPECT_EQ(*value, nlohmann::json::parse(text)) << text;
  }
}

TEST(JsonTest, RejectsDuplicateKeys) {
  ExpectRejected(R"({"a":1,"a":1})", "\"a\" occurs twice");
  ExpectRejected(R"({"x":[{"b":1,"\u0062":2}]})", "\"b\" occurs twice");
}

TEST(JsonTest, LimitsNesting) {
  EXPECT_TRUE(ParseJson(Nested(kMaxJsonDepth), "a.json").ok());
  ExpectRejected(Nested(kMaxJsonDepth + 1), "nested deeper");
  ExpectRejected(std::string(5'000'000, '['), "nested deeper");
}

TEST(JsonTest, RejectsWhatIsNotJson) {
  for (const char* text : {"", "{", "[1,]", "{\"a\"}", "nul", "1 2", "NaN", "'a'", "[1]]",
                           "\"\xff\"", "\"\\ud800\"", "\"\n\"", "1e999", "// c\n1"}) {
    ExpectRejected(text, "not valid JSON");
  }
}

TEST(JsonTest, SaysWhereASyntaxErrorIs) {
  ExpectRejected("{\n  \"a\": 1,\n}", "a.json: line 3, column 1: not valid JSON");
  ExpectRejected("[1,\r\n 2 3]", "line 2, column 4");
  ExpectRejected("", "line 1, column 1");
  ExpectRejected("[\n1e999]", "line 2, column");
}

TEST(JsonTest, RefusesANulWhereverItIs) {
  using namespace std::string_view_literals;
  ExpectRejected("{}\n\0"sv, "a.json: line 2, column 1: not valid JSON: expected the end");
  ExpectRejected("[1]\0garbage"sv, "line 1, column 4");
  ExpectRejected("[1\0]"sv, "not valid JSON");
  ExpectRejected("\"a\0\""sv, "not valid JSON");
}

TEST(JsonTest, NamesAGitLfsPointer) {
  ExpectRejected(
      "version https://git-lfs.github.com/spec/v1\n"
      "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n",
      "a.json: found a Git LFS pointer in the place of the file, which has 12345 bytes; run 'git "
      "lfs pull'");
  ExpectRejected("version https://git-lfs.github.com/spec/v1\r\n", "Git LFS pointer");
}

TEST(JsonTest, ReplacesNumbersThatAreNotFinite) {
  std::vector<NonFiniteLiteral> literals;
  EXPECT_EQ(ReplaceNonFiniteLiterals("[NaN,\n\"NaN\\\"NaN\", -Infinity,\n\nInfinity]", literals),
            "[null,\n\"NaN\\\"NaN\", null,\n\nnull]");
  ASSERT_EQ(literals.size(), 3u);
  EXPECT_EQ(literals[0].word, "NaN");
  EXPECT_EQ(literals[0].line, 1);
  EXPECT_EQ(literals[1].word, "-Infinity");
  EXPECT_EQ(literals[1].line, 2);
  EXPECT_EQ(literals[2].word, "Infinity");
  EXPECT_EQ(literals[2].line, 4);
  literals.clear();
  for (const char* text : {"", "\"", "\"\\", "{}", "\"NaN"}) {
    EXPECT_EQ(ReplaceNonFiniteLiterals(text, literals), text);
  }
  EXPECT_TRUE(literals.empty());
}

TEST(JsonTest, ReadsFilesUpToALimit) {
  const TemporaryFolder folder;
  const std::string path = folder.Write("a.json", R"({"key": [1, 2]})");
  const auto value = ReadJsonFile(path);
  ASSERT_TRUE(value.ok()) << value.status();
  EXPECT_EQ((*value)["key"].size(), 2u);
  EXPECT_EQ(ReadJsonFile(path, 5).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReadJsonFile(folder.File("b.json")).status().code(), absl::StatusCode::kNotFound);
}

TEST(JsonTest, FindMemberTakesNullForAbsent) {
  const auto value = nlohmann::json::parse(R"({"a":0,"b":null})");
  ASSERT_NE(FindMember(value, "a"), nullptr);
  EXPECT_EQ(*FindMember(value, "a"), 0);
  EXPECT_EQ(FindMember(value, "b"), nullptr);
  EXPECT_EQ(FindMember(value, "c"), nullptr);
  EXPECT_EQ(FindMember(nlohmann::json::array(), "a"), nullptr);
}

TEST(JsonTest, DescribesValues) {
  const auto describe = [](const char* text) {
    const auto value = nlohmann::json::parse(text);
    return DescribeJson(&value);
  };
  EXPECT_EQ(describe("\"gelu\""), "the string \"gelu\"");
  EXPECT_EQ(describe("1.5"), "the number 1.5");
  EXPECT_EQ(describe("-2"), "the number -2");
  EXPECT_EQ(describe("true"), "true");
  EXPECT_EQ(describe("[1]"), "an array");
  EXPECT_EQ(describe("{}"), "an object");
  EXPECT_EQ(describe("null"), "null");
  EXPECT_EQ(DescribeJson(nullptr), "nothing");
}

}  // namespace
}  // namespace ultrasketch
