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

TEST(StopMatcherTest, FindsAHiddenToken) {
  for (const bool include : {false, true}) {
    StopMatcher matcher({"</s>"}, include);
    EXPECT_EQ(matcher.Add("one"), "one");
    EXPECT_EQ(matcher.Add("", "</s>", 4), "");
    ASSERT_TRUE(matcher.matched());
    EXPECT_EQ(matcher.Finish(), include ? "</s>" : "");
  }
}

TEST(StopMatcherTest, FindsAStringOfTextAndAHiddenToken) {
  for (const bool include : {false, true}) {
    StopMatcher matcher({"END</s>\n"}, include);
    std::string shown = matcher.Add("oneEND");
    EXPECT_EQ(shown, include ? "oneEND" : "one");
    shown += matcher.Add("", "</s>", 4);
    EXPECT_FALSE(matcher.matched());
    shown += matcher.Add("\ntwo");
    ASSERT_TRUE(matcher.matched());
    shown += matcher.Finish();
    EXPECT_EQ(shown, include ? "oneEND</s>\n" : "one");
  }
}

TEST(StopMatcherTest, ShowsWhatWasHeldBackForAHiddenTokenThatDidNotCome) {
  StopMatcher matcher({"END</s>"}, false);
  EXPECT_EQ(matcher.Add("oneEND"), "one");
  EXPECT_EQ(matcher.Add("", "<s>", 3), "");  // "</s>" may still come as text
  EXPECT_EQ(matcher.Add("two"), "ENDtwo");
  EXPECT_FALSE(matcher.matched());
  EXPECT_EQ(matcher.Finish(), "");
}

TEST(StopMatcherTest, HidingATokenDoesNotPartAStringThatIsShown) {
  for (const bool include : {false, true}) {
    StopMatcher matcher({"STOP"}, include);
    std::string shown = matcher.Add("one ST");
    shown += matcher.Add("", "<s>", 3);
    shown += matcher.Add("OP two");
    EXPECT_TRUE(matcher.matched());
    shown += matcher.Finish();
    EXPECT_EQ(shown, include ? "one STOP" : "one ");
  }
}

TEST(StopMatcherTest, DoesNotFindPartsOfAHiddenToken) {
  StopMatcher matcher({"end", "<", "|>", "a<|end"}, false);
  EXPECT_EQ(matcher.Add("a"), "");
  EXPECT_EQ(matcher.Add("", "<|endoftext|>", 13), "");
  EXPECT_FALSE(matcher.matched());
  EXPECT_EQ(matcher.Add("b the end", "b the end", 0), "ab the ");
  EXPECT_EQ(matcher.matched_index(), 0);
}

TEST(StopMatcherTest, TheShownTextMayLagBehind) {
  // The line's end is certain to the one who spells tokens out before it is to the one who skips.
  for (const bool include : {false, true}) {
    StopMatcher matcher({"\n</s>", "</s>"}, include);
    EXPECT_EQ(matcher.Add("one"), "one");
    EXPECT_EQ(matcher.Add("", "\n</s>", 4), "");
    EXPECT_EQ(matcher.matched_index(), 0);
    EXPECT_EQ(matcher.Finish("\n"), include ? "\n</s>" : "");
  }
  StopMatcher first({"\n", "</s>"}, false);
  EXPECT_EQ(first.Add("one"), "one");
  EXPECT_EQ(first.Add("", "\n</s>", 4), "");
  EXPECT_EQ(first.matched_index(), 0);
  EXPECT_EQ(first.Finish("\n"), "");
}

TEST(StopMatcherTest, HiddenTokensCutTheTextWhereTheyStand) {
  std::mt19937 random(11);
  const auto uniform = [&random](size_t low, size_t high) {
    return std::uniform_int_distribution<size_t>(low, high)(random);
  };
  // Tokens: a, b, and the hidden <a> and <>.
  const std::vector<std::string> tokens = {"a", "b", "<a>", "<>"};
  int num_matches = 0;
  for (int i = 0; i < 3000; ++i) {
    const auto text_of = [&](size_t length) {
      std::vector<size_t> text(length);
      for (size_t& token : text) token = uniform(0, 3);
      return text;
    };
    std::vector<std::string> stop;
    for (size_t n = uniform(1, 3); n > 0; --n) {
      std::string spelled;
      for (const size_t token : text_of(uniform(1, 4))) spelled += tokens[token];
      stop.push_back(spelled);
    }
    const bool include = i % 2 == 0;
    StopMatcher matcher(stop, include);
    std::string shown;
    std::string all_shown;  // so far, as if nothing stopped
    std::string all_spelled;
    for (const size_t token : text_of(12)) {
      const bool hidden = token >= 2;
      if (!hidden) all_shown += tokens[token];
      all_spelled += tokens[token];
      shown += matcher.Add(hidden ? "" : tokens[token], tokens[token],
                           hidden ? tokens[token].size() : 0);
      // By definition.
      size_t longest = 0;
      bool longest_is_shown = false;
      for (const std::string& s : stop) {
        const bool is_shown = all_shown.ends_with(s) && !hidden;
        if ((is_shown || all_spelled.ends_with(s)) && s.size() > longest) {
          longest = s.size();
          longest_is_shown = is_shown;
        }
      }
      ASSERT_EQ(matcher.matched(), longest > 0) << all_spelled;
      if (longest == 0) {
        ASSERT_TRUE(all_shown.starts_with(shown));
        continue;
      }
      ++num_matches;
      shown += matcher.Finish();
      std::string expected = all_shown;
      const std::string& found = stop[static_cast<size_t>(matcher.matched_index())];
      ASSERT_EQ(found.size(), longest);
      if (longest_is_shown) {
        if (!include) expected.resize(expected.size() - longest);
      } else {
        const size_t num_hidden_bytes = [&] {
          size_t count = 0;
          bool inside = false;
          for (const char c : found) {
            inside = inside || c == '<';
            count += inside ? 1 : 0;
            inside = inside && c != '>';
          }
          return count;
        }();
        expected.resize(expected.size() - (longest - num_hidden_bytes));
        if (include) expected += found;
      }
      ASSERT_EQ(shown, expected) << all_spelled << " " << found;
      break;
    }
    if (!matcher.matched()) {
      shown += matcher.Finish();
      ASSERT_EQ(shown, all_shown);
    }
  }
  EXPECT_GT(num_matches, 1000);
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
