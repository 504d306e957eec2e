#include "engine/serving/engine_loop/stop_matcher.h"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

TEST(StopMatcherTest, PassesTextThroughWithoutStopStrings) {
  StopMatcher matcher({}, false);
  EXPECT_EQ(matcher.Add("one "), "one ");
  EXPECT_EQ(matcher.Add("two"), "two");
  EXPECT_EQ(matcher.Finish(), "");
  EXPECT_FALSE(matcher.matched());
}

TEST(StopMatcherTest, HoldsBackWhatMayBecomeAStopString) {
  StopMatcher matcher({"STOP"}, false);
  EXPECT_EQ(matcher.Add("a S"), "a ");
  EXPECT_EQ(matcher.Add("T"), "");
  EXPECT_EQ(matcher.Add("S"), "ST");
  EXPECT_EQ(matcher.Add("TO"), "");
  EXPECT_EQ(matcher.Add("P and more"), "");
  EXPECT_TRUE(matcher.matched());
  EXPECT_EQ(matcher.matched_index(), 0);
}

TEST(StopMatcherTest, ReturnsWhatWasHeldBackWhenTheTextEnds) {
  StopMatcher matcher({"STOP"}, false);
  EXPECT_EQ(matcher.Add("a STO"), "a ");
  EXPECT_EQ(matcher.Finish(), "STO");
  EXPECT_FALSE(matcher.matched());
}

TEST(StopMatcherTest, CutsTheTextBeforeTheStopString) {
  StopMatcher matcher({"\n\n"}, false);
  EXPECT_EQ(matcher.Add("line\n\nnext"), "line");
  EXPECT_TRUE(matcher.matched());
}

TEST(StopMatcherTest, CanIncludeTheStopStringAndThenHoldsNothingBack) {
  StopMatcher matcher({"STOP"}, true);
  EXPECT_EQ(matcher.Add("a ST"), "a ST");
  EXPECT_EQ(matcher.Add("OP and more"), "OP");
  EXPECT_TRUE(matcher.matched());
}

TEST(StopMatcherTest, TheStringThatIsCompleteFirstWins) {
  StopMatcher matcher({"abcd", "bc"}, false);
  EXPECT_EQ(matcher.Add("xabcd"), "xa");
  EXPECT_EQ(matcher.matched_index(), 1);
}

TEST(StopMatcherTest, OfStringsThatEndTogetherTheLongestWins) {
  StopMatcher matcher({"c", "abc", "bc"}, false);
  EXPECT_EQ(matcher.Add("xabc"), "x");
  EXPECT_EQ(matcher.matched_index(), 1);
}

TEST(StopMatcherTest, FindsAStringThatOverlapsItsOwnBeginning) {
  StopMatcher matcher({"aab"}, false);
  EXPECT_EQ(matcher.Add("aaa"), "a");
  EXPECT_EQ(matcher.Add("b"), "");
  EXPECT_TRUE(matcher.matched());
}

TEST(StopMatcherTest, UnmatchedTextNeitherStopsNorBeginsAStopString) {
  StopMatcher matcher({"STOP"}, false);
  EXPECT_EQ(matcher.AddUnmatched("STOP ST"), "STOP ST");
  EXPECT_EQ(matcher.Add("OP"), "OP");
  EXPECT_FALSE(matcher.matched());
}

TEST(StopMatcherTest, HowTheTextIsCutMakesNoDifference) {
  std::mt19937 random(7);
  const auto uniform = [&random](size_t low, size_t high) {
    return std::uniform_int_distribution<size_t>(low, high)(random);
  };
  const auto text_of = [&](size_t length) {
    std::string text;
    while (text.size() < length) text.push_back(static_cast<char>('a' + uniform(0, 1)));
    return text;
  };
  int num_matches = 0;
  for (int i = 0; i < 3000; ++i) {
    std::vector<std::string> stop;
    for (size_t n = uniform(1, 3); n > 0; --n) stop.push_back(text_of(uniform(1, 6)));
    const bool include = i % 2 == 0;
    const std::string text = text_of(20);

    // By definition: the first end of any stop string, and the longest that ends there.
    size_t end = std::string::npos;
    size_t longest = 0;
    for (size_t e = 1; e <= text.size() && end == std::string::npos; ++e) {
      for (const std::string& s : stop) {
        if (e >= s.size() && text.compare(e - s.size(), s.size(), s) == 0) {
          end = e;
          longest = std::max(longest, s.size());
        }
      }
    }
    const std::string expected =
        end == std::string::npos ? text : text.substr(0, include ? end : end - longest);

    StopMatcher matcher(stop, include);
    std::string shown;
    for (size_t begin = 0; begin < text.size() && !matcher.matched();) {
      const size_t length = uniform(1, 5);
      shown += matcher.Add(text.substr(begin, length));
      begin += length;
      // What is shown is never taken back.
      ASSERT_EQ(expected.compare(0, shown.size(), shown), 0);
    }
    if (!matcher.matched()) shown += matcher.Finish();
    ASSERT_EQ(shown, expected);
    ASSERT_EQ(matcher.matched(), end != std::string::npos);
    if (matcher.matched()) {
      ASSERT_EQ(stop[static_cast<size_t>(matcher.matched_index())].size(), longest);
      ++num_matches;
    }
  }
  EXPECT_GT(num_matches, 1000);
}

}  // namespace
}  // namespace ultrasketch
