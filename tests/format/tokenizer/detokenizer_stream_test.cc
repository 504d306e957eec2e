#include <algorithm>
#include <cstdint>
#include <ctime>
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

std::vector<int32_t> Encode(const Tokenizer& tokenizer, const std::string& text) {
  return *tokenizer.Encode(text, {.add_special_tokens = false});
}

class DetokenizerStreamTest : public testing::TestWithParam<std::string> {
 protected:
  // Random ids: half of the sequences of all tokens (and some ids that are none), half of the first
  // 300, where the bytes are.
  std::vector<int32_t> RandomIds(uint64_t sequence) const {
    uint64_t counter = 0;
    const auto random = [&](uint64_t bound) { return RandomWord(11, sequence, counter++) % bound; };
    const uint64_t num_ids = sequence % 2 == 0 ? tokenizer_->vocab_size() + 3 : 300;
    std::vector<int32_t> ids(random(24));
    for (int32_t& id : ids) id = static_cast<int32_t>(random(num_ids)) - (sequence % 2 == 0);
    return ids;
  }

  std::unique_ptr<Tokenizer> tokenizer_ = LoadTestTokenizer(GetParam());
};

TEST_P(DetokenizerStreamTest, PiecesAreWholeCharactersAndAddUpToDecode) {
  for (uint64_t sequence = 0; sequence < 4000; ++sequence) {
    const std::vector<int32_t> ids = RandomIds(sequence);
    for (const bool skip_special_tokens : {false, true}) {
      DetokenizerStream stream(*tokenizer_, skip_special_tokens);
      std::string text;
      for (const int32_t id : ids) {
        const std::string piece = stream.Add(id);
        ASSERT_TRUE(IsValidUtf8(piece)) << Quoted(piece);
        text += piece;
      }
      text += stream.Finish();
      ASSERT_EQ(text, tokenizer_->Decode(ids, skip_special_tokens)) << testing::PrintToString(ids);
    }
  }
}

// What follows a context is what Decode of both has beyond Decode of the context. Where the context
// ends inside a character the two differ already before its end, and the rest from there is given.
TEST_P(DetokenizerStreamTest, ContinuesAContextWhereItEnds) {
  for (uint64_t sequence = 0; sequence < 4000; ++sequence) {
    const std::vector<int32_t> ids = RandomIds(sequence);
    const size_t split = ids.empty() ? 0 : RandomWord(12, 0, sequence) % (ids.size() + 1);
    const std::vector<int32_t> context(ids.begin(), ids.begin() + split);
    DetokenizerStream stream(*tokenizer_, /*skip_special_tokens=*/false);
    stream.Prime(context);
    std::string text;
    for (size_t i = split; i < ids.size(); ++i) text += stream.Add(ids[i]);
    text += stream.Finish();

    const std::string before = tokenizer_->Decode(context, false);
    const std::string all = tokenizer_->Decode(ids, false);
    size_t num_common = 0;
    while (num_common < std::min(before.size(), all.size()) &&
           before[num_common] == all[num_common]) {
      ++num_common;
    }
    while (num_common > 0 && num_common < all.size() &&
           (static_cast<uint8_t>(all[num_common]) & 0xc0) == 0x80) {
      --num_common;
    }
    ASSERT_EQ(text, all.substr(num_common)) << testing::PrintToString(ids) << " at " << split;
  }
}

INSTANTIATE_TEST_SUITE_P(All, DetokenizerStreamTest,
                         testing::Values("gpt2.json", "llama2.json", "mistral.json", "qwen2.json",
                                         "metaspace.json"),
                         [](const testing::TestParamInfo<std::string>& name) {
                           return name.param.substr(0, name.param.find('.'));
                         });

TEST(DetokenizerStreamTest, HoldsBackAnIncompleteCharacterOnly) {
  const auto tokenizer = LoadTestTokenizer("gpt2.json");
  const std::vector<int32_t> ids = Encode(*tokenizer, "x\xf0\x9f\x99\x82y");
  ASSERT_EQ(ids.size(), 6u);
  DetokenizerStream stream(*tokenizer, false);
  std::vector<std::string> pieces;
  for (const int32_t id : ids) pieces.push_back(stream.Add(id));
  EXPECT_THAT(pieces, testing::ElementsAre("x", "", "", "", "\xf0\x9f\x99\x82", "y"));
  EXPECT_EQ(stream.Finish(), "");
}

TEST(DetokenizerStreamTest, RendersAnIncompleteCharacterAtTheEnd) {
  const auto tokenizer = LoadTestTokenizer("gpt2.json");
  std::vector<int32_t> ids = Encode(*tokenizer, "\xf0\x9f\x99\x82");
  ids.pop_back();
  DetokenizerStream stream(*tokenizer, false);
  for (const int32_t id : ids) EXPECT_EQ(stream.Add(id), "");
  EXPECT_EQ(stream.Finish(), "\xef\xbf\xbd");
}

TEST(DetokenizerStreamTest, KeepsTheSpaceOfAWordThatContinuesAPrompt) {
  const auto tokenizer = LoadTestTokenizer("mistral.json");
  const std::vector<int32_t> prompt = Encode(*tokenizer, "the");
  const std::vector<int32_t> all = Encode(*tokenizer, "the the");
  ASSERT_GT(all.size(), prompt.size());
  DetokenizerStream alone(*tokenizer, true);
  DetokenizerStream continued(*tokenizer, true);
  continued.Prime(prompt);
  std::string text_alone, text_continued;
  for (size_t i = prompt.size(); i < all.size(); ++i) {
    text_alone += alone.Add(all[i]);
    text_continued += continued.Add(all[i]);
  }
  EXPECT_EQ(text_alone + alone.Finish(), "the");
  EXPECT_EQ(text_continued + continued.Finish(), " the");
}

TEST(DetokenizerStreamTest, CompletesACharacterThatThePromptBegan) {
  const auto tokenizer = LoadTestTokenizer("gpt2.json");
  const std::vector<int32_t> ids = Encode(*tokenizer, "ab\xf0\x9f\x99\x82");
  const size_t num_context = ids.size() - 2;
  DetokenizerStream stream(*tokenizer, true);
  stream.Prime(absl::MakeConstSpan(ids).subspan(0, num_context));
  EXPECT_EQ(stream.Add(ids[num_context]), "");
  EXPECT_EQ(stream.Add(ids[num_context + 1]), "\xf0\x9f\x99\x82");
}

// What this thread has computed so far, whatever else the machine does.
double CpuSeconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

TEST(DetokenizerStreamTest, CostDoesNotGrowWithTheStream) {
  for (const char* name : {"gpt2.json", "mistral.json"}) {
    const auto tokenizer = LoadTestTokenizer(name);
    const std::vector<int32_t> ids = Encode(*tokenizer, "the lighthouse \xf0\x9f\x99\x82 keeper");
    DetokenizerStream stream(*tokenizer, true);
    std::vector<double> seconds;
    size_t num_bytes = 0;
    for (int part = 0; part < 30; ++part) {
      const double begin = CpuSeconds();
      for (int i = 0; i < 1000; ++i) {
        for (const int32_t id : ids) num_bytes += stream.Add(id).size();
      }
      seconds.push_back(CpuSeconds() - begin);
    }
    EXPECT_GT(num_bytes, 30000u * 20);
    // Were a token's cost proportional to those before it, the cheapest of the last ten parts would
    // take 40 times as long as the cheapest of the first ten.
    EXPECT_LT(*std::min_element(seconds.end() - 10, seconds.end()),
              8 * *std::min_element(seconds.begin(), seconds.begin() + 10))
        << name;
  }
}

}  // namespace
}  // namespace ultrasketch
