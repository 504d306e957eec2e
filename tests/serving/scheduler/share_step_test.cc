#include "engine/serving/scheduler/share_step.h"

#include <algorithm>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;

// Claims without logits but the last token's.
std::vector<int64_t> Share(const std::vector<int64_t>& missing, int64_t max_tokens,
                           int64_t max_rows = 100) {
  std::vector<StepClaim> claims;
  for (const int64_t num_missing : missing) claims.push_back({num_missing, num_missing - 1});
  return ShareStep(claims, max_tokens, max_rows);
}

TEST(ShareStepTest, GivesEverybodyWhatThereIsEnoughOf) {
  EXPECT_THAT(Share({1, 1, 1}, 16), ElementsAre(1, 1, 1));
  EXPECT_THAT(Share({1, 10, 5}, 16), ElementsAre(1, 10, 5));
}

TEST(ShareStepTest, GivesThreeQuartersInOrderAndTheRestToWhoMissesLeast) {
  // Of 102 tokens two are the first of each; 75 go in order, 25 to the shorter one.
  EXPECT_THAT(Share({900, 800}, 102), ElementsAre(1 + 75, 1 + 25));
  EXPECT_THAT(Share({800, 900}, 102), ElementsAre(1 + 100, 1));
  EXPECT_THAT(Share({900, 3}, 102), ElementsAre(1 + 98, 3));
}

TEST(ShareStepTest, ShortPromptsAreThroughBesideLongOnes) {
  std::vector<int64_t> missing(20, 900);
  missing.push_back(3);
  const std::vector<int64_t> grants = Share(missing, 512);
  EXPECT_EQ(grants.back(), 3);
  EXPECT_EQ(grants.front(), 512 - 19 - 3);
}

TEST(ShareStepTest, EverybodyGetsAToken) {
  EXPECT_THAT(Share({900, 900, 1, 2}, 4), ElementsAre(1, 1, 1, 1));
}

TEST(ShareStepTest, StaysWithinTheRows) {
  // All logits of 20 tokens, before one that needs a row with its second token.
  EXPECT_THAT(ShareStep({{{20, 0}, {2, 1}}}, 16, 8), ElementsAre(8, 1));
  EXPECT_THAT(ShareStep({{{1, 0}, {20, 12}}}, 100, 8), ElementsAre(1, 12 + 7));
}

TEST(ShareStepTest, RandomSharesAreWithinTheBudgetAndUseIt) {
  std::mt19937 random(7);
  const auto uniform = [&random](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  for (int round = 0; round < 5000; ++round) {
    const int64_t max_tokens = uniform(1, 60);
    const int64_t max_rows = uniform(1, 30);
    std::vector<StepClaim> claims(
        static_cast<size_t>(uniform(0, std::min({max_tokens, max_rows, int64_t{8}}))));
    for (StepClaim& claim : claims) {
      claim.num_missing = uniform(0, 2) == 0 ? 1 : uniform(1, 40);
      claim.num_before_logits = uniform(0, 3) == 0 ? 0 : claim.num_missing - 1;
    }
    const std::vector<int64_t> grants = ShareStep(claims, max_tokens, max_rows);
    int64_t num_tokens = 0;
    int64_t num_rows = 0;
    for (size_t i = 0; i < claims.size(); ++i) {
      ASSERT_GE(grants[i], 1);
      ASSERT_LE(grants[i], claims[i].num_missing);
      num_tokens += grants[i];
      num_rows += std::max<int64_t>(0, grants[i] - claims[i].num_before_logits);
    }
    ASSERT_LE(num_tokens, max_tokens);
    ASSERT_LE(num_rows, max_rows);
    for (size_t i = 0; i < claims.size(); ++i) {
      const bool needs_a_row = grants[i] >= claims[i].num_before_logits;
      ASSERT_TRUE(grants[i] == claims[i].num_missing || num_tokens == max_tokens ||
                  (needs_a_row && num_rows == max_rows));
    }
  }
}

TEST(ShareStepTest, ALongPromptWaitsWhileThoseBeforeItUseTheStep) {
  EXPECT_FALSE(WouldGetShare(900, 1, {.all = 899, .before = 899, .shorter = 899}, 512));
  EXPECT_TRUE(WouldGetShare(900, 1, {.all = 100, .before = 100, .shorter = 100}, 512));
  EXPECT_TRUE(WouldGetShare(900, 1, {.all = 500, .before = 500, .shorter = 500}, 512));
  EXPECT_TRUE(WouldGetShare(900, 0, {}, 512));
}

TEST(ShareStepTest, AShortPromptDoesNotWaitForLongOnes) {
  EXPECT_TRUE(WouldGetShare(3, 5, {.all = 4500, .before = 4500, .shorter = 0}, 512));
  // Enough short ones are at work.
  EXPECT_FALSE(WouldGetShare(3, 60, {.all = 5000, .before = 5000, .shorter = 130}, 512));
  EXPECT_TRUE(WouldGetShare(1, 60, {.all = 5000, .before = 5000, .shorter = 130}, 512));
}

}  // namespace
}  // namespace ultrasketch
