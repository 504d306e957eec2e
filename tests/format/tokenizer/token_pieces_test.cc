#include <algorithm>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/random.h"
#include "engine/base/strings.h"
#include "engine/format/tokenizer/tokenizer.h"
#include "tests/format/tokenizer/test_tokenizers.h"

namespace ultrasketch {
namespace {

using testing::ElementsAre;

std::vector<int32_t> Encode(const Tokenizer& tokenizer, const std::string& text) {
  return *tokenizer.Encode(text, {.add_special_tokens = false});
}

// The texts of the pieces in order, and what is left in the end.
std::vector<std::string> Texts(TokenPieceStream stream, absl::Span<const int32_t> ids) {
  std::vector<std::string> texts;
  for (const int32_t id : ids) texts.push_back(stream.Add(id).text);
  const std::string rest = stream.Finish();
  if (!rest.empty()) texts.push_back(rest);
  return texts;
}

std::string Joined(const std::vector<std::string>& texts) {
  std::string joined;
  for (const std::string& text : texts) joined += text;
  return joined;
}

class TokenPiecesTest : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Tokenizer> tokenizer_ = LoadTestTokenizer(GetParam());
};

TEST_P(TokenPiecesTest, JoinedAreTheText) {
  for (const char* text :
       {"hello world and hello again", " two  spaces\n\n\tand tabs ",
        "Grüße, 日本語, 🙂🙂!", "don't 12345", "▁ is a character, too"}) {
    const std::vector<int32_t> ids = Encode(*tokenizer_, text);
    std::string bytes;
    TokenPieceStream stream(*tokenizer_, false);
    for (const int32_t id : ids) bytes += stream.Add(id).bytes;
    EXPECT_EQ(bytes, tokenizer_->Decode(ids, false)) << text;
    EXPECT_EQ(Joined(Texts(TokenPieceStream(*tokenizer_, false), ids)), bytes) << text;
  }
}

// Whatever a model writes, special tokens and unfinished characters among it. (A run of
// byte-fallback tokens that is no UTF-8 is the documented exception, so the bytes are left out.)
TEST_P(TokenPiecesTest, JoinedAreWhatDecodeGives) {
  for (uint64_t sequence = 0; sequence < 2000; ++sequence) {
    uint64_t counter = 0;
    std::vector<int32_t> ids(RandomWord(5, sequence, counter++) % 24);
    const bool has_byte_fallback = tokenizer_->TokenToId("<0xE5>").has_value();
    const int32_t first_id = has_byte_fallback ? *tokenizer_->TokenToId("<0xFF>") + 1 : 0;
    for (int32_t& id : ids) {
      id = first_id + static_cast<int32_t>(RandomWord(5, sequence, counter++) %
                                           (tokenizer_->vocab_size() + 3 - first_id));
    }
    const std::vector<std::string> texts = Texts(TokenPieceStream(*tokenizer_, false), ids);
    for (const std::string& text : texts) ASSERT_TRUE(IsValidUtf8(text)) << Quoted(text);
    ASSERT_EQ(Joined(texts), tokenizer_->Decode(ids, false)) << testing::PrintToString(ids);
  }
}

// Alternatives are told apart by their bytes, but for the byte-fallback twin of a character that
// the vocabulary has, and so are their texts.
TEST_P(TokenPiecesTest, TellsTokensApart) {
  std::set<std::string> texts, bytes;
  int num_twins = 0;
  for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    const std::optional<std::string> token = tokenizer_->IdToToken(id);
    if (!token.has_value()) continue;
    const bool is_byte = token->starts_with("<0x") && token->size() == 6;
    ASSERT_TRUE(IsValidUtf8(tokenizer_->TokenText(id))) << id;
    const bool is_new = bytes.insert(tokenizer_->TokenBytes(id)).second;
    if (is_byte) {
      ASSERT_EQ(tokenizer_->TokenBytes(id).size(), 1u) << id;
    }
    num_twins += !is_new;
    texts.insert(tokenizer_->TokenText(id));
  }
  EXPECT_LE(num_twins, 256);
  EXPECT_EQ(texts.size(), bytes.size());
}

INSTANTIATE_TEST_SUITE_P(All, TokenPiecesTest,
                         testing::Values("gpt2.json", "llama2.json", "llama2-normalized.json",
                                         "llama3.json", "mistral.json", "qwen2.json"),
                         [](const testing::TestParamInfo<std::string>& name) {
                           std::string id = name.param.substr(0, name.param.find('.'));
                           std::replace(id.begin(), id.end(), '-', '_');
                           return id;
                         });

TEST(TokenPiecesTest, KeepTheSpaceBeforeAWordAndBeginAsTheTextDoes) {
  const auto tokenizer = LoadTestTokenizer("mistral.json");
  const std::vector<int32_t> ids = Encode(*tokenizer, "the the");
  ASSERT_EQ(ids.size(), 2u);
  EXPECT_EQ(tokenizer->TokenBytes(ids[0]), " the");
  EXPECT_EQ(tokenizer->TokenText(ids[0]), " the");
  EXPECT_THAT(Texts(TokenPieceStream(*tokenizer, true), ids), ElementsAre("the", " the"));

  TokenPieceStream after_a_prompt(*tokenizer, true);
  after_a_prompt.Prime(ids);
  EXPECT_THAT(Texts(std::move(after_a_prompt), ids), ElementsAre(" the", " the"));

  // A beginning token that the text skips does not count as something before it.
  TokenPieceStream after_the_beginning(*tokenizer, true);
  after_the_beginning.Prime({*tokenizer->TokenToId("<s>")});
  EXPECT_THAT(Texts(std::move(after_the_beginning), ids), ElementsAre("the", " the"));
}

TEST(TokenPiecesTest, GiveACharacterToTheLastOfItsTokens) {
  for (const char* name : {"gpt2.json", "llama2.json"}) {
    const auto tokenizer = LoadTestTokenizer(name);
    std::vector<int32_t> ids = Encode(*tokenizer, "\xf0\x9f\x99\x82");
    ids.erase(ids.begin(), ids.end() - 4);  // without the prefix
    ASSERT_EQ(tokenizer->Decode(ids, false), "\xf0\x9f\x99\x82") << name;
    EXPECT_THAT(Texts(TokenPieceStream(*tokenizer, false), ids),
                ElementsAre("", "", "", "\xf0\x9f\x99\x82"));
    EXPECT_EQ(tokenizer->TokenBytes(ids[0]), "\xf0");
    EXPECT_EQ(tokenizer->TokenText(ids[0]), "<0xF0>");
    ids.pop_back();
    EXPECT_EQ(Joined(Texts(TokenPieceStream(*tokenizer, false), {ids.data(), 1})), "\xef\xbf\xbd");
  }
}

TEST(TokenPiecesTest, SpellSpecialTokens) {
  const auto tokenizer = LoadTestTokenizer("mistral.json");
  const int32_t end = *tokenizer->TokenToId("</s>");
  EXPECT_EQ(tokenizer->TokenBytes(end), "</s>");
  TokenPieceStream stream(*tokenizer, true);
  EXPECT_EQ(stream.Add(end).text, "</s>");
  EXPECT_EQ(stream.Add(Encode(*tokenizer, "the")[0]).text, "the");
  EXPECT_EQ(tokenizer->TokenBytes(-1), "");
  EXPECT_EQ(tokenizer->TokenText(tokenizer->vocab_size()), "");
}

}  // namespace
}  // namespace ultrasketch
