#include "engine/format/gguf/gguf_tokenizer.h"

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/format/json.h"
#include "engine/format/tokenizer/tokenizer.h"
#include "tests/format/gguf/gguf_of_checkpoint.h"
#include "tests/format/gguf/gguf_writer.h"

namespace ultrasketch {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kManyRows = 1 << 20;

absl::StatusOr<GgufTokenizer> Make(const GgufWriter& writer, int64_t num_rows = kManyRows,
                                   const std::optional<std::string>& pre = std::nullopt) {
  const std::string bytes = writer.Write();
  const auto file = GgufFile::Parse(bytes, "model.gguf");
  if (!file.ok()) return file.status();
  return MakeGgufTokenizer(**file, num_rows, pre);
}

std::unique_ptr<Tokenizer> Load(const GgufTokenizer& made) {
  auto tokenizer = Tokenizer::Parse(made.tokenizer.dump(), "made");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

json ReadTestTokenizer(const std::string& name) {
  return *ReadJsonFile(absl::StrCat(TEST_DATA_DIR, "/tokenizer/", name, ".json"));
}

GgufWriter FromTestTokenizer(const std::string& name, const std::string& pre) {
  GgufWriter writer;
  AddTokenizer(ReadTestTokenizer(name), pre, writer);
  return writer;
}

// A vocabulary over bytes: a, b, "ab", a control token and a user-defined one.
GgufWriter Small() {
  GgufWriter writer;
  writer.String("tokenizer.ggml.model", "gpt2");
  writer.String("tokenizer.ggml.pre", "gpt-2");
  writer.Strings("tokenizer.ggml.tokens", {"a", "b", "ab", "<|x|>", "<|y|>"});
  writer.Int32s("tokenizer.ggml.token_type", {1, 1, 1, 3, 4});
  writer.Strings("tokenizer.ggml.merges", {"a b"});
  return writer;
}

// SentencePiece's: every byte, a space, letters and some words.
GgufWriter SmallScored() {
  GgufWriter writer;
  writer.String("tokenizer.ggml.model", "llama");
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<int32_t> types = {2, 3, 3};
  std::vector<float> scores = {0, 0, 0};
  for (int byte = 0; byte < 256; ++byte) {
    tokens.push_back(absl::StrCat("<0x", absl::Hex(byte, absl::kZeroPad2), ">"));
    for (char& c : tokens.back()) {
      if (c >= 'a' && c <= 'f') c = static_cast<char>(c - 'a' + 'A');
    }
    types.push_back(6);
    scores.push_back(0);
  }
  float score = -1;
  for (const char* token : {"\xe2\x96\x81", "a", "b", "c", "ab", "abc", "bc",
                            "\xe2\x96\x81"
                            "a"}) {
    tokens.emplace_back(token);
    types.push_back(1);
    scores.push_back(score--);
  }
  writer.Strings("tokenizer.ggml.tokens", tokens);
  writer.Int32s("tokenizer.ggml.token_type", types);
  writer.Float32s("tokenizer.ggml.scores", scores);
  return writer;
}

std::string ToHexOf(const std::string& text) {
  std::string digits;
  for (const char c : text) {
    absl::StrAppend(&digits, absl::Hex(static_cast<uint8_t>(c), absl::kZeroPad2));
  }
  return digits;
}

// The file is llama.cpp's answers: see make_ids.py beside it.
TEST(GgufTokenizerTest, IdsAreThoseOfLlamaCpp) {
  const auto entries = ReadJsonFile(TEST_DATA_DIR "/gguf/llama-cpp-ids.json");
  ASSERT_TRUE(entries.ok()) << entries.status();
  ASSERT_GE(entries->size(), 13u);
  for (const json& entry : *entries) {
    const auto pre = entry["pre"].get<std::string>();
    SCOPED_TRACE(absl::StrCat(entry["vocabulary"].get<std::string>(), " ", pre));
    GgufWriter writer = FromTestTokenizer(entry["vocabulary"], pre);
    if (!entry["special"].is_null()) {
      writer.Uint32("tokenizer.ggml.bos_token_id", entry["special"].get<uint32_t>());
      writer.Uint32("tokenizer.ggml.eos_token_id", entry["special"].get<uint32_t>());
    }
    for (const auto& [key, value] : entry["keys"].items()) {
      writer.Bool("tokenizer.ggml." + key, value.get<bool>());
    }
    const auto made = Make(writer);
    ASSERT_TRUE(made.ok()) << made.status();
    const auto tokenizer = Load(*made);
    for (const json& one : entry["cases"]) {
      EncodeOptions options;
      options.add_special_tokens = one["add"].get<bool>();
      options.parse_special_tokens = one["parse"].get<bool>();
      const auto text = one["text"].get<std::string>();
      const auto ids = tokenizer->Encode(text, options);
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_EQ(*ids, one["ids"].get<std::vector<int32_t>>()) << text << " " << ToHexOf(text);
    }
  }
}

// Ids of the model's own tokenizer, where llama.cpp's differ: text that is not in form NFC.
TEST(GgufTokenizerTest, Qwen2NormalizesAsItsOwnTokenizerDoes) {
  const auto made = Make(FromTestTokenizer("qwen2", "qwen2"));
  ASSERT_TRUE(made.ok()) << made.status();
  const auto original = Tokenizer::Load(TEST_DATA_DIR "/tokenizer/qwen2.json");
  ASSERT_TRUE(original.ok());
  const std::string decomposed = "na\xc3\xafve nai\xcc\x88ve";
  EXPECT_EQ(*Load(*made)->Encode(decomposed), *(*original)->Encode(decomposed));
}

TEST(GgufTokenizerTest, DecodingGivesTheText) {
  for (const auto& [name, pre] : std::vector<std::pair<std::string, std::string>>{
           {"gpt2", "gpt-2"}, {"llama3", "llama-bpe"}, {"qwen2", "qwen2"}, {"llama2", ""}}) {
    GgufWriter writer = FromTestTokenizer(name, pre);
    if (name == "llama3") writer.Uint32("tokenizer.ggml.bos_token_id", 562);
    const auto made = Make(writer);
    ASSERT_TRUE(made.ok()) << made.status();
    const auto tokenizer = Load(*made);
    const std::string text =
        " Hello  w\xc3\xb6rld,\n\t 1234 \xe4\xbd\xa0\xe5\xa5\xbd \xf0\x9f\x99\x82 ";
    EXPECT_EQ(tokenizer->Decode(*tokenizer->Encode(text), /*skip_special_tokens=*/true), text)
        << name;
  }
}

TEST(GgufTokenizerTest, TokensHaveTheirIdsAndKinds) {
  GgufWriter writer = Small();
  writer.Uint32("tokenizer.ggml.eos_token_id", 3);
  const auto made = Make(writer);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_THAT(made->warnings, IsEmpty());
  const auto tokenizer = Load(*made);
  EXPECT_EQ(tokenizer->vocab_size(), 5);
  EXPECT_TRUE(tokenizer->IsSpecial(3));
  EXPECT_FALSE(tokenizer->IsSpecial(4));
  EXPECT_THAT(*tokenizer->Encode("ab<|x|><|y|>b"), ElementsAre(2, 3, 4, 1));
  // User-defined tokens are found where special ones are plain text; it has none of these letters.
  EXPECT_THAT(*tokenizer->Encode("ab<|x|><|y|>b", {.parse_special_tokens = false}),
              ElementsAre(2, 4, 1));
  EXPECT_EQ(made->tokenizer_config["eos_token"], "<|x|>");
  EXPECT_FALSE(made->tokenizer_config.contains("bos_token"));
}

TEST(GgufTokenizerTest, TokensThatEndATurnAreKnownBySpelling) {
  GgufWriter writer = Small();
  writer.Strings("tokenizer.ggml.tokens",
                 {"a", "<|im_end|>", "<|eot_id|>", "</s>", "<|x|>", "<|endoftext|>"});
  writer.Int32s("tokenizer.ggml.token_type", {1, 1, 3, 1, 3, 3});
  writer.Strings("tokenizer.ggml.merges", {});
  writer.Uint32("tokenizer.ggml.eos_token_id", 5);
  writer.Uint32("tokenizer.ggml.eot_token_id", 4);
  const auto made = Make(writer);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->eos_id, 5);
  EXPECT_THAT(made->end_ids, ElementsAre(5, 1, 2, 3, 4));
  EXPECT_TRUE(Load(*made)->IsSpecial(1));
}

TEST(GgufTokenizerTest, BosAndEosAreAddedAsTheFileSays) {
  GgufWriter writer = Small();
  writer.Uint32("tokenizer.ggml.bos_token_id", 3);
  writer.Uint32("tokenizer.ggml.eos_token_id", 4);
  const auto encode = [&](const GgufWriter& w) {
    const auto made = Make(w);
    EXPECT_TRUE(made.ok()) << made.status();
    return *Load(*made)->Encode("a");
  };
  EXPECT_THAT(encode(writer), ElementsAre(0));
  writer.Bool("tokenizer.ggml.add_bos_token", true);
  EXPECT_THAT(encode(writer), ElementsAre(3, 0));
  writer.Bool("tokenizer.ggml.add_eos_token", true);
  EXPECT_THAT(encode(writer), ElementsAre(3, 0, 4));
  // Llama 3's adds it where the file is silent.
  writer.RemoveKey("tokenizer.ggml.add_bos_token");
  writer.RemoveKey("tokenizer.ggml.add_eos_token");
  writer.String("tokenizer.ggml.pre", "llama-bpe");
  EXPECT_THAT(encode(writer), ElementsAre(3, 0));
  writer.Bool("tokenizer.ggml.add_bos_token", false);
  EXPECT_THAT(encode(writer), ElementsAre(0));
  writer.Bool("tokenizer.ggml.add_bos_token", true);
  writer.RemoveKey("tokenizer.ggml.bos_token_id");
  const auto status = Make(writer).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("tokenizer.ggml.bos_token_id"));
}

TEST(GgufTokenizerTest, ScoredTokensAreMergedByScore) {
  const auto made = Make(SmallScored());
  ASSERT_TRUE(made.ok()) << made.status();
  const auto tokenizer = Load(*made);
  const int32_t space = 259;
  const int32_t b = 261, abc = 264, space_a = 266;
  // " abc": "ab" is better than "bc" and both than " a".
  EXPECT_THAT(*tokenizer->Encode("abc"), ElementsAre(1, space, abc));
  EXPECT_THAT(*tokenizer->Encode("a b"), ElementsAre(1, space_a, space, b));
  // A character without a token is its bytes.
  EXPECT_THAT(*tokenizer->Encode("\xc3\xa9"), ElementsAre(1, space, 3 + 0xc3, 3 + 0xa9));
  EXPECT_EQ(tokenizer->Decode({1, space_a, 3 + 0xc3, 3 + 0xa9}, true), "a\xc3\xa9");
}

TEST(GgufTokenizerTest, ASpaceBeforeTheTextCanBeLeftOut) {
  GgufWriter writer = SmallScored();
  writer.Bool("tokenizer.ggml.add_space_prefix", false);
  writer.Bool("tokenizer.ggml.add_bos_token", false);
  const auto made = Make(writer);
  ASSERT_TRUE(made.ok()) << made.status();
  const auto tokenizer = Load(*made);
  EXPECT_THAT(*tokenizer->Encode("abc"), ElementsAre(264));
  EXPECT_EQ(tokenizer->Decode({259, 264}, true), " abc");
}

TEST(GgufTokenizerTest, WithoutANameTextIsSplitAsLlamaCppDoesAndTheUserIsTold) {
  GgufWriter writer = Small();
  writer.RemoveKey("tokenizer.ggml.pre");
  auto made = Make(writer);
  ASSERT_TRUE(made.ok()) << made.status();
  ASSERT_EQ(made->warnings.size(), 1u);
  EXPECT_THAT(made->warnings[0], HasSubstr("tokenizer.ggml.pre is absent"));
  // The user's word is taken.
  made = Make(writer, kManyRows, "smollm");
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_THAT(made->warnings, IsEmpty());
  EXPECT_THAT(made->tokenizer["pre_tokenizer"].dump(), HasSubstr("Digits"));
  const auto status = Make(writer, kManyRows, "nonsense").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"nonsense\" is not supported"));
}

TEST(GgufTokenizerTest, ChatTemplatesAreKept) {
  GgufWriter writer = Small();
  writer.String("tokenizer.chat_template", "{{ messages }}");
  auto made = Make(writer);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->tokenizer_config["chat_template"], "{{ messages }}");
  writer.String("tokenizer.chat_template.tool_use", "{{ tools }}");
  writer.Strings("tokenizer.chat_templates", {"tool_use"});
  made = Make(writer);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(json(made->tokenizer_config["chat_template"]),
            json::parse(R"([{"name": "default", "template": "{{ messages }}"},
                            {"name": "tool_use", "template": "{{ tools }}"}])"));
}

TEST(GgufTokenizerTest, IdsOutsideTheVocabularyAreNotUsed) {
  GgufWriter writer = Small();
  writer.Uint32("tokenizer.ggml.bos_token_id", 5);
  writer.Raw("tokenizer.ggml.eos_token_id", GgufValueType::kInt32,
             GgufBytes().Number(int32_t{-1}).bytes());
  writer.Uint32("tokenizer.ggml.padding_token_id", 0xffffffff);
  writer.Uint32("tokenizer.ggml.eot_token_id", 4);
  const auto made = Make(writer);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->bos_id, std::nullopt);
  EXPECT_EQ(made->eos_id, std::nullopt);
  EXPECT_EQ(made->pad_id, std::nullopt);
  EXPECT_THAT(made->end_ids, ElementsAre(4));
  EXPECT_FALSE(made->tokenizer_config.contains("bos_token"));
  EXPECT_THAT(made->warnings,
              ElementsAre(AllOf(HasSubstr("model.gguf: tokenizer.ggml.bos_token_id"),
                                HasSubstr("0 to 4, found the number 5")),
                          HasSubstr("eos_token_id"),
                          AllOf(HasSubstr("padding_token_id"), HasSubstr("4294967295"))));
  // Nobody knows the token that is to be added to texts.
  writer.Bool("tokenizer.ggml.add_bos_token", true);
  EXPECT_EQ(Make(writer).status().code(), absl::StatusCode::kDataLoss);
}

TEST(GgufTokenizerTest, AFlagMayBeAnInteger) {
  GgufWriter writer = Small();
  writer.Uint32("tokenizer.ggml.bos_token_id", 3);
  writer.Uint32("tokenizer.ggml.add_bos_token", 1);
  const auto made = Make(writer);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_THAT(*Load(*made)->Encode("ab"), ElementsAre(3, 2));
  writer.Uint32("tokenizer.ggml.add_bos_token", 0);
  EXPECT_THAT(*Load(*Make(writer))->Encode("ab"), ElementsAre(2));
  writer.Uint32("tokenizer.ggml.add_bos_token", 2);
  EXPECT_THAT(std::string(Make(writer).status().message()),
              AllOf(HasSubstr("add_bos_token"), HasSubstr("a bool"), HasSubstr("the number 2")));
}

TEST(GgufTokenizerTest, WhatMakesNoSenseIsRefusedByKey) {
  const auto expect = [](const GgufWriter& writer, const std::vector<std::string>& parts,
                         int64_t num_rows = kManyRows) {
    const auto status = Make(writer, num_rows).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    for (const std::string& part : parts) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(part));
    }
  };
  expect(Small(), {"tokenizer.ggml.tokens", "at most 4 tokens"}, 4);
  GgufWriter writer = Small();
  writer.Strings("tokenizer.ggml.tokens", {"a", "b", "ab", "a", "c"});
  expect(writer, {"tokenizer.ggml.tokens", "\"a\" at places 0 and 3"});
  writer = Small();
  writer.Strings("tokenizer.ggml.tokens", {"a", "b", "ab", "\xff", "c"});
  expect(writer, {"tokenizer.ggml.tokens", "UTF-8", "at place 3"});
  writer = Small();
  writer.Strings("tokenizer.ggml.tokens", {});
  expect(writer, {"tokenizer.ggml.tokens"});
  writer = Small();
  writer.Int32s("tokenizer.ggml.token_type", {1, 1, 1, 3});
  expect(writer, {"tokenizer.ggml.token_type", "a type for each of 5 tokens"});
  writer = Small();
  writer.Strings("tokenizer.ggml.merges", {"ab"});
  expect(writer, {"tokenizer.ggml.merges", "\"ab\" at place 0"});
  writer = Small();
  writer.Strings("tokenizer.ggml.merges", {"a b", "b a"});
  expect(writer, {"tokenizer.ggml.merges", "\"ba\" is none", "\"b a\" at place 1"});
  writer = Small();
  writer.String("tokenizer.chat_template", "\xff");
  expect(writer, {"tokenizer.chat_template", "UTF-8"});
  writer = SmallScored();
  writer.RemoveKey("tokenizer.ggml.scores");
  expect(writer, {"tokenizer.ggml.scores", "a score for each"});
  writer = SmallScored();
  std::vector<float> scores(267, 0.0f);
  scores[7] = std::numeric_limits<float>::quiet_NaN();
  writer.Float32s("tokenizer.ggml.scores", scores);
  expect(writer, {"tokenizer.ggml.scores", "NaN at place 7"});
  writer = SmallScored();
  writer.Strings("tokenizer.ggml.tokens", {std::string(1025, 'a')});
  expect(writer, {"tokenizer.ggml.tokens", "at most 1024 bytes"});
}

}  // namespace
}  // namespace ultrasketch
