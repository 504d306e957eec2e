#include "engine/bench/load/workload.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/bench/load/prompt_text.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Lt;

TokenSource Vocabulary(int32_t size) { return {size, {}}; }

WorkloadOptions Lengths(const char* prompt, const char* output) {
  WorkloadOptions options;
  options.prompt_tokens = *LengthDistribution::Parse(prompt);
  options.output_tokens = *LengthDistribution::Parse(output);
  return options;
}

std::vector<int32_t> FirstOf(const std::vector<int32_t>& ids, int count) {
  return {ids.begin(), ids.begin() + count};
}

TEST(WorkloadTest, RequestsDependOnSeedRunAndIndexAlone) {
  WorkloadOptions options = Lengths("10:20", "1:9");
  const Workload a(options, Vocabulary(1000), 0);
  const Workload b(options, Vocabulary(1000), 0);
  for (const int64_t index : {5, 0, 3}) {
    EXPECT_EQ(a.Request(index).prompt_ids, b.Request(index).prompt_ids);
    EXPECT_EQ(a.Request(index).seed, b.Request(index).seed);
  }
  EXPECT_NE(FirstOf(a.Request(0).prompt_ids, 10), FirstOf(a.Request(1).prompt_ids, 10));
  options.seed = 1;
  EXPECT_NE(FirstOf(a.Request(0).prompt_ids, 10),
            FirstOf(Workload(options, Vocabulary(1000), 0).Request(0).prompt_ids, 10));
}

TEST(WorkloadTest, RunsHaveTheSameLengthsAndOtherTokens) {
  const WorkloadOptions options = Lengths("10:2000", "1:900");
  const Workload first(options, Vocabulary(1000), 0);
  const Workload second(options, Vocabulary(1000), 1);
  for (int64_t index = 0; index < 20; ++index) {
    const LoadRequest a = first.Request(index);
    const LoadRequest b = second.Request(index);
    EXPECT_EQ(a.prompt_ids.size(), b.prompt_ids.size());
    EXPECT_EQ(a.output_tokens, b.output_tokens);
    EXPECT_NE(a.prompt_ids, b.prompt_ids);
  }
}

TEST(WorkloadTest, RandomIdsAreOfTheVocabulary) {
  const Workload workload(Lengths("5000", "1"), Vocabulary(7), 0);
  const std::vector<int32_t> ids = workload.Request(0).prompt_ids;
  EXPECT_THAT(ids, Each(AllOf(Ge(0), Lt(7))));
  EXPECT_EQ(std::set<int32_t>(ids.begin(), ids.end()).size(), 7u);
}

TEST(WorkloadTest, TextIsCutFromRandomPlacesAndGoesOnAtItsBeginning) {
  std::vector<int32_t> text(10);
  std::iota(text.begin(), text.end(), 100);
  const Workload workload(Lengths("25", "1"), {5, text}, 0);
  std::set<int32_t> beginnings;
  for (int64_t index = 0; index < 100; ++index) {
    const std::vector<int32_t> ids = workload.Request(index).prompt_ids;
    ASSERT_EQ(ids.size(), 25u);
    for (size_t i = 0; i < ids.size(); ++i) {
      ASSERT_EQ(ids[i], 100 + (ids[0] - 100 + static_cast<int32_t>(i)) % 10);
    }
    beginnings.insert(ids[0]);
  }
  EXPECT_EQ(beginnings.size(), 10u);
}

TEST(WorkloadTest, PrefixesAreSharedAndComeOnTopOfThePrompt) {
  WorkloadOptions options = Lengths("5", "1");
  options.shared_prefix_tokens = 8;
  options.num_prefixes = 3;
  const Workload workload(options, Vocabulary(100'000), 0);
  std::set<std::vector<int32_t>> prefixes;
  std::set<std::vector<int32_t>> rests;
  for (int64_t index = 0; index < 100; ++index) {
    const std::vector<int32_t> ids = workload.Request(index).prompt_ids;
    ASSERT_EQ(ids.size(), 13u);
    prefixes.insert(FirstOf(ids, 8));
    rests.insert({ids.begin() + 8, ids.end()});
  }
  EXPECT_EQ(prefixes.size(), 3u);
  EXPECT_EQ(rests.size(), 100u);
}

TEST(WorkloadTest, ATracesBlocksOfEqualIdsAreEqualTokens) {
  WorkloadOptions options;
  options.trace = {{0, 1100, 3, {7, 9}}, {0, 600, 4, {7, 8}}, {0, 20, 5, {}}};
  const Workload workload(options, Vocabulary(100'000), 0);
  const LoadRequest first = workload.Request(0);
  const LoadRequest second = workload.Request(1);
  ASSERT_EQ(first.prompt_ids.size(), 1100u);
  ASSERT_EQ(second.prompt_ids.size(), 600u);
  EXPECT_EQ(FirstOf(first.prompt_ids, 512), FirstOf(second.prompt_ids, 512));
  EXPECT_NE(first.prompt_ids[512], second.prompt_ids[512]);
  EXPECT_EQ(first.output_tokens, 3);
  EXPECT_EQ(second.output_tokens, 4);
  EXPECT_EQ(workload.Request(2).prompt_ids.size(), 20u);
}

TEST(WorkloadTest, WhatDoesNotFitTheContextIsRefusedWithTheNumbers) {
  WorkloadOptions options = Lengths("100:200", "lognormal:10:2:50");
  options.shared_prefix_tokens = 6;
  EXPECT_TRUE(CheckWorkload(options, 256).ok());
  const absl::Status status = CheckWorkload(options, 255);
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(status.message(), AllOf(HasSubstr("200"), HasSubstr("50"), HasSubstr("256"),
                                      HasSubstr("255"), HasSubstr("6 ")));
  options.trace = {{0, 10, 20, {}}, {1, 25, 4, {}}};
  EXPECT_TRUE(CheckWorkload(options, 36).ok());
  EXPECT_FALSE(CheckWorkload(options, 35).ok());
}

TEST(PromptTextTest, PiecesEndAtWordsAndNeverWithinACharacter) {
  EXPECT_THAT(CutText("ab cd\nef", 5), ElementsAre("ab", " cd\n", "ef"));
  EXPECT_THAT(CutText("abcdefgh", 5), ElementsAre("abcde", "fgh"));
  EXPECT_THAT(CutText("abc\u00e9\u00e9", 4), ElementsAre("abc", "\u00e9\u00e9"));
  EXPECT_THAT(CutText("", 5), IsEmpty());
  const std::string text =
      "Dans un mois, dans un an, comment souffrirons-nous,\n\n  Seigneur, "
      "que tant de mers me s\u00e9parent de vous ?   ";
  for (size_t max_bytes = 4; max_bytes < text.size() + 2; ++max_bytes) {
    const std::vector<std::string_view> pieces = CutText(text, max_bytes);
    std::string joined;
    for (const std::string_view piece : pieces) {
      EXPECT_LE(piece.size(), max_bytes);
      EXPECT_FALSE(piece.empty());
      joined += piece;
    }
    EXPECT_EQ(joined, text);
  }
}

TEST(PromptTextTest, TokensOfThePiecesAreJoined) {
  std::vector<size_t> sizes;
  const auto ids = EncodePromptText(std::string(40'000, 'x'), [&](std::string_view piece) {
    sizes.push_back(piece.size());
    return absl::StatusOr<std::vector<int32_t>>(std::vector<int32_t>(piece.size(), 1));
  });
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(ids->size(), 40'000u);
  EXPECT_GT(sizes.size(), 1u);
  EXPECT_TRUE(absl::IsInvalidArgument(
      EncodePromptText("", [](std::string_view) { return std::vector<int32_t>(); }).status()));
  EXPECT_TRUE(absl::IsUnavailable(
      EncodePromptText("x", [](std::string_view) -> absl::StatusOr<std::vector<int32_t>> {
        return absl::UnavailableError("gone");
      }).status()));
}

}  // namespace
}  // namespace ultrasketch
