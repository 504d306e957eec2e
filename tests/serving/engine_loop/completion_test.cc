#include "engine/serving/engine_loop/completion.h"

#include <optional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/serving/engine_loop/testing.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Tokens of more than one byte.
constexpr int32_t kOpen = kFirstPieceToken;       // "xSTO"
constexpr int32_t kClose = kFirstPieceToken + 1;  // "Py"

class CompletionTest : public ::testing::Test {
 protected:
  CompletionTest() : tokenizer_(ByteTokenizer({"xSTO", "Py"})) {
    request_.prompt_ids = Bytes("prompt");
    request_.max_tokens = 100;
    request_.eos_token_ids = {kEndToken};
  }

  // Feeds the tokens until the end, or all; the text of each delta in texts_.
  std::optional<Completion::Ending> Feed(const std::vector<int32_t>& ids,
                                         int64_t context_tokens = 1000) {
    Completion completion(request_, *tokenizer_, 0, context_tokens);
    std::optional<Completion::Ending> ending;
    for (const int32_t id : ids) {
      GenerationDelta delta;
      SampledToken token;
      token.id = id;
      ending = completion.Accept(token, delta);
      EXPECT_THAT(delta.token_ids, ElementsAre(id));
      texts_.push_back(delta.text);
      text_ += delta.text;
      if (ending.has_value()) break;
    }
    num_tokens_ = completion.num_tokens();
    return ending;
  }

  std::shared_ptr<const Tokenizer> tokenizer_;
  GenerationRequest request_;
  std::vector<std::string> texts_;
  std::string text_;
  int32_t num_tokens_ = 0;
};

TEST_F(CompletionTest, ShowsTextAsItComes) {
  EXPECT_FALSE(Feed(Bytes("abc")).has_value());
  EXPECT_THAT(texts_, ElementsAre("a", "b", "c"));
}

TEST_F(CompletionTest, EndsAtMaxTokens) {
  request_.max_tokens = 2;
  const auto ending = Feed(Bytes("abc"));
  ASSERT_TRUE(ending.has_value());
  EXPECT_EQ(ending->reason, FinishReason::kLength);
  EXPECT_EQ(text_, "ab");
}

TEST_F(CompletionTest, EndsAtTheContext) {
  const auto ending = Feed(Bytes("abcdef"), /*context_tokens=*/10);
  ASSERT_TRUE(ending.has_value());
  EXPECT_EQ(ending->reason, FinishReason::kLength);
  EXPECT_EQ(text_, "abcd");
}

TEST_F(CompletionTest, EndTokenIsCountedButNotShown) {
  const auto ending = Feed({'a', kEndToken, 'b'});
  ASSERT_TRUE(ending.has_value());
  EXPECT_EQ(ending->reason, FinishReason::kStop);
  EXPECT_EQ(ending->stop_string, "");
  EXPECT_EQ(text_, "a");
  EXPECT_EQ(num_tokens_, 2);
}

TEST_F(CompletionTest, EndTokenIsNotShownWhenSpecialTokensAre) {
  request_.skip_special_tokens = false;
  Feed({'a', kEndToken});
  EXPECT_EQ(text_, "a");
}

TEST_F(CompletionTest, EndTokenIsShownWhenStopsAreIncludedAndSpecialTokensShown) {
  request_.skip_special_tokens = false;
  request_.include_stop_in_output = true;
  Feed({'a', kEndToken});
  EXPECT_EQ(text_, "a<|end|>");
}

TEST_F(CompletionTest, EndTokensAreIgnoredWhenThereAreNone) {
  request_.eos_token_ids.clear();
  EXPECT_FALSE(Feed({'a', kEndToken, 'b'}).has_value());
  EXPECT_EQ(text_, "ab");
}

TEST_F(CompletionTest, StopTokensEndTheTextBeforeThem) {
  request_.stop_token_ids = {'.'};
  const auto ending = Feed(Bytes("One. Two."));
  ASSERT_TRUE(ending.has_value());
  EXPECT_EQ(ending->reason, FinishReason::kStop);
  EXPECT_EQ(text_, "One");
}

TEST_F(CompletionTest, StopTokensAreShownWhenIncluded) {
  request_.stop_token_ids = {'.'};
  request_.include_stop_in_output = true;
  Feed(Bytes("One. Two."));
  EXPECT_EQ(text_, "One.");
}

TEST_F(CompletionTest, StopStringsAreFoundAcrossTokens) {
  request_.stop = {"STOP"};
  const auto ending = Feed({'a', kOpen, kClose, 'z'});
  ASSERT_TRUE(ending.has_value());
  EXPECT_EQ(ending->reason, FinishReason::kStop);
  EXPECT_EQ(ending->stop_string, "STOP");
  EXPECT_THAT(texts_, ElementsAre("a", "x", ""));
  EXPECT_EQ(num_tokens_, 3);
}

TEST_F(CompletionTest, IncludedStopStringEndsTheText) {
  request_.stop = {"STOP"};
  request_.include_stop_in_output = true;
  Feed({'a', kOpen, kClose, 'z'});
  EXPECT_EQ(text_, "axSTOP");
}

TEST_F(CompletionTest, ShowsWhatWasHeldBackForAStopStringThatDidNotCome) {
  request_.stop = {"STOP"};
  EXPECT_FALSE(Feed({kOpen, 'z'}).has_value());
  EXPECT_THAT(texts_, ElementsAre("x", "STOz"));
}

TEST_F(CompletionTest, ShowsWhatWasHeldBackAtTheEnd) {
  request_.stop = {"STOP"};
  Feed({kOpen, kEndToken});
  EXPECT_EQ(text_, "xSTO");
  request_.max_tokens = 1;
  text_.clear();
  const auto ending = Feed({kOpen});
  EXPECT_EQ(ending->reason, FinishReason::kLength);
  EXPECT_EQ(text_, "xSTO");
}

TEST_F(CompletionTest, AStopStringAtMaxTokensIsAStop) {
  request_.stop = {"STOP"};
  request_.max_tokens = 2;
  const auto ending = Feed({kOpen, kClose});
  ASSERT_TRUE(ending.has_value());
  EXPECT_EQ(ending->reason, FinishReason::kStop);
}

TEST_F(CompletionTest, TheSpellingOfASpecialTokenStopsWhetherItIsShownOrNot) {
  request_.stop = {"<|end|>"};
  for (const bool is_end_token : {false, true}) {
    request_.eos_token_ids.assign(is_end_token ? 1 : 0, kEndToken);
    for (const bool skip : {false, true}) {
      for (const bool include : {false, true}) {
        request_.skip_special_tokens = skip;
        request_.include_stop_in_output = include;
        text_.clear();
        const auto ending = Feed({'a', kEndToken, 'b'});
        ASSERT_TRUE(ending.has_value());
        EXPECT_EQ(ending->reason, FinishReason::kStop);
        EXPECT_EQ(ending->stop_string, "<|end|>");
        EXPECT_EQ(text_, include ? "a<|end|>" : "a");
        EXPECT_EQ(num_tokens_, 2);
      }
    }
  }
}

TEST_F(CompletionTest, StopStringsMaySpanTextAndSpecialTokens) {
  request_.eos_token_ids.clear();
  request_.stop = {"no <|end|><|end|>!", "never"};
  for (const bool skip : {false, true}) {
    for (const bool include : {false, true}) {
      request_.skip_special_tokens = skip;
      request_.include_stop_in_output = include;
      text_.clear();
      std::vector<int32_t> ids = Bytes("oh no no ");
      for (const int32_t id : {kEndToken, kEndToken, static_cast<int32_t>('!')}) ids.push_back(id);
      ids.push_back('?');
      const auto ending = Feed(ids);
      ASSERT_TRUE(ending.has_value());
      EXPECT_EQ(ending->reason, FinishReason::kStop);
      EXPECT_EQ(ending->stop_string, "no <|end|><|end|>!");
      EXPECT_EQ(text_, include ? "oh no no <|end|><|end|>!" : "oh no ");
    }
  }
}

TEST_F(CompletionTest, ASpecialTokenThatIsNoStopLeavesTheTextAlone) {
  request_.eos_token_ids.clear();
  request_.stop = {"b<|end|>d"};
  EXPECT_FALSE(Feed({'a', 'b', kEndToken, 'c'}).has_value());
  EXPECT_EQ(text_, "abc");
}

TEST_F(CompletionTest, SpecialTokensBeforeMinTokensDoNotStop) {
  request_.eos_token_ids.clear();
  request_.stop = {"<|end|>"};
  request_.min_tokens = 2;
  const auto ending = Feed({kEndToken, 'a', 'b', kEndToken});
  ASSERT_TRUE(ending.has_value());
  EXPECT_EQ(text_, "ab");
  EXPECT_EQ(num_tokens_, 4);
}

TEST_F(CompletionTest, AStopStringThatAnEndTokenCompletesIsTheEnding) {
  request_.stop = {"ne."};
  request_.stop_token_ids = {'.'};
  const auto ending = Feed(Bytes("One. Two."));
  ASSERT_TRUE(ending.has_value());
  EXPECT_EQ(ending->stop_string, "ne.");
  EXPECT_EQ(text_, "O");
}

TEST_F(CompletionTest, CharactersAreShownWhole) {
  EXPECT_FALSE(Feed(Bytes("é€😀")).has_value());
  EXPECT_EQ(text_, "é€😀");
  EXPECT_THAT(texts_, ElementsAre("", "é", "", "", "€", "", "", "", "😀"));
}

TEST_F(CompletionTest, StopStringsOfWideCharactersAreFound) {
  request_.stop = {"€😀"};
  const auto ending = Feed(Bytes("a€€😀b"));
  ASSERT_TRUE(ending.has_value());
  EXPECT_EQ(text_, "a€");
}

TEST_F(CompletionTest, AnIncompleteCharacterAtTheEndIsReplaced) {
  request_.max_tokens = 2;
  Feed({'a', 0xE2});
  EXPECT_EQ(text_, "a\uFFFD");
}

TEST_F(CompletionTest, StopStringsAreNotLookedForBeforeMinTokens) {
  request_.stop = {"b"};
  request_.min_tokens = 3;
  const auto ending = Feed(Bytes("abbcb"));
  ASSERT_TRUE(ending.has_value());
  EXPECT_EQ(text_, "abbc");
}

TEST_F(CompletionTest, EndTokensAreForbiddenBeforeMinTokens) {
  request_.stop_token_ids = {'.', kEndToken};
  request_.min_tokens = 2;
  Completion completion(request_, *tokenizer_, 3, 1000);
  for (int i = 0; i < 3; ++i) {
    const SampleRequest sample = completion.NextSample(5);
    EXPECT_EQ(sample.logits_row, 5);
    EXPECT_EQ(sample.params, &request_.sampling);
    EXPECT_EQ(sample.stream, 3u);
    EXPECT_EQ(sample.index, static_cast<uint64_t>(i));
    if (i < 2) {
      EXPECT_THAT(sample.forbidden_ids, ElementsAre('.', kEndToken));
    } else {
      EXPECT_THAT(sample.forbidden_ids, IsEmpty());
    }
    GenerationDelta delta;
    SampledToken token;
    token.id = 'a';
    EXPECT_FALSE(completion.Accept(token, delta).has_value());
    EXPECT_EQ(delta.completion, 3);
  }
}

TEST_F(CompletionTest, CountsTokensForPenaltiesAlone) {
  Completion plain(request_, *tokenizer_, 0, 1000);
  EXPECT_EQ(plain.NextSample(0).counts, nullptr);

  request_.sampling.frequency_penalty = 0.5f;
  Completion completion(request_, *tokenizer_, 0, 1000);
  for (const int32_t id : {'a', 'b', 'a'}) {
    GenerationDelta delta;
    SampledToken token;
    token.id = id;
    completion.Accept(token, delta);
  }
  const TokenCounts* counts = completion.NextSample(0).counts;
  ASSERT_NE(counts, nullptr);
  EXPECT_EQ(counts->prompt.at('p'), 2);  // "prompt"
  EXPECT_EQ(counts->output.at('a'), 2);
  EXPECT_EQ(counts->output.at('b'), 1);
  EXPECT_FALSE(counts->output.contains('p'));
}

TEST_F(CompletionTest, GivesLogprobsOnlyWhenWanted) {
  for (const bool wanted : {false, true}) {
    request_.sampling.num_logprobs = wanted ? 0 : -1;
    Completion completion(request_, *tokenizer_, 0, 1000);
    GenerationDelta delta;
    SampledToken token;
    token.id = 'a';
    token.logprob = -0.5f;
    completion.Accept(token, delta);
    ASSERT_EQ(delta.logprobs.size(), wanted ? 1u : 0u);
    if (!wanted) continue;
    EXPECT_EQ(delta.logprobs[0].logprob, -0.5f);
  }
}

}  // namespace
}  // namespace ultrasketch
