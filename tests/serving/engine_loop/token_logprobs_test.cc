#include "engine/serving/engine_loop/token_logprobs.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

TEST(TokenLogprobsTest, IsTheLogSoftmax) {
  const std::vector<float> logits = {std::log(1.0f), std::log(2.0f), std::log(5.0f)};
  const absl::StatusOr<SampledToken> token = LogprobsOfToken(logits, 1, 0);
  ASSERT_TRUE(token.ok());
  EXPECT_EQ(token->id, 1);
  EXPECT_NEAR(token->logprob, std::log(2.0 / 8), 1e-6);
  EXPECT_TRUE(token->top.empty());
}

TEST(TokenLogprobsTest, AgreesWithTheSamplersLogProbability) {
  std::vector<float> logits;
  for (int i = 0; i < 1000; ++i) logits.push_back(30 * std::sin(static_cast<float>(i)));
  for (const int32_t id : {0, 17, 999}) {
    EXPECT_NEAR(LogprobsOfToken(logits, id, 0)->logprob, LogProbability(logits, id), 1e-5);
  }
}

TEST(TokenLogprobsTest, OrdersTheTopByProbabilityThenId) {
  const std::vector<float> logits = {1, 3, 2, 3};
  const absl::StatusOr<SampledToken> token = LogprobsOfToken(logits, 0, 3);
  ASSERT_TRUE(token.ok());
  ASSERT_EQ(token->top.size(), 3u);
  EXPECT_EQ(token->top[0].id, 1);
  EXPECT_EQ(token->top[1].id, 3);
  EXPECT_EQ(token->top[2].id, 2);
  EXPECT_EQ(token->top[0].logprob, token->top[1].logprob);
  EXPECT_NEAR(token->top[0].logprob - token->logprob, 2, 1e-6);
}

TEST(TokenLogprobsTest, GivesTheWholeVocabularyWhenMoreIsAsked) {
  EXPECT_EQ(LogprobsOfToken(std::vector<float>{1, 2}, 0, 20)->top.size(), 2u);
}

TEST(TokenLogprobsTest, HandlesLargeLogits) {
  const std::vector<float> logits = {3e38f, -3e38f, 0};
  EXPECT_EQ(LogprobsOfToken(logits, 0, 0)->logprob, 0);
}

TEST(TokenLogprobsTest, RefusesLogitsThatAreNotNumbers) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity}) {
    EXPECT_EQ(LogprobsOfToken(std::vector<float>{0, bad}, 0, 0).status().code(),
              absl::StatusCode::kInternal);
  }
  EXPECT_EQ(LogprobsOfToken(std::vector<float>{-kInfinity}, 0, 0).status().code(),
            absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace ultrasketch
