#include "engine/backends/sampling/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/random.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> RandomLogits(size_t count, double scale, uint64_t seed) {
  std::vector<float> logits(count);
  for (size_t i = 0; i < count; ++i) {
    logits[i] = static_cast<float>(scale * NormalDouble(seed, 0, i));
  }
  return logits;
}

SampleRequest RequestFor(const SamplingParams& params) {
  SampleRequest request;
  request.params = &params;
  return request;
}

int32_t MustSample(absl::Span<const float> logits, const SampleRequest& request) {
  const auto token = SampleToken(logits, request);
  EXPECT_TRUE(token.ok()) << token.status();
  return token.ok() ? token->id : -1;
}

// The distribution that SampleToken is to draw from, written down as plainly as possible.
std::vector<double> ExpectedDistribution(const std::vector<float>& logits,
                                         const SampleRequest& request) {
  const SamplingParams& params = *request.params;
  const size_t n = logits.size();
  std::vector<double> adjusted(logits.begin(), logits.end());
  for (const auto& [id, bias] : params.logit_bias) adjusted[static_cast<size_t>(id)] += bias;
  for (size_t i = 0; request.counts != nullptr && i < n; ++i) {
    const auto count = [&](const auto& counts) {
      const auto position = counts.find(static_cast<int32_t>(i));
      return position == counts.end() ? 0 : position->second;
    };
    const int output = count(request.counts->output);
    if (output + count(request.counts->prompt) > 0) {
      const double penalty = params.repetition_penalty;
      adjusted[i] = adjusted[i] > 0 ? adjusted[i] / penalty : adjusted[i] * penalty;
    }
    adjusted[i] -= params.frequency_penalty * output;
    if (output > 0) adjusted[i] -= params.presence_penalty;
  }
  for (const int32_t id : request.forbidden_ids) adjusted[static_cast<size_t>(id)] = -kInfinity;

  const double maximum = *std::max_element(adjusted.begin(), adjusted.end());
  std::vector<double> probabilities(n);
  for (size_t i = 0; i < n; ++i) {
    probabilities[i] = std::exp((adjusted[i] - maximum) / params.temperature);
  }
  const auto normalize = [&] {
    const double total = std::accumulate(probabilities.begin(), probabilities.end(), 0.0);
    for (double& probability : probabilities) probability /= total;
  };
  normalize();
  const double most = *std::max_element(probabilities.begin(), probabilities.end());
  for (double& probability : probabilities) {
    if (probability < params.min_p * most * (1 - 1e-6)) probability = 0;
  }
  normalize();
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return adjusted[a] > adjusted[b]; });
  if (params.top_k > 0) {
    for (size_t i = static_cast<size_t>(params.top_k); i < n; ++i) probabilities[order[i]] = 0;
  }
  normalize();
  if (params.top_p < 1) {
    double before = 0;
    for (size_t i = 0; i < n; ++i) {
      const double probability = probabilities[order[i]];
      if (i > 0 && before >= params.top_p) probabilities[order[i]] = 0;
      before += probability;
    }
  }
  normalize();
  return probabilities;
}

TokenCounts ExampleCounts() {
  TokenCounts counts;
  counts.prompt = {{0, 3}, {5, 1}, {7, 2}, {21, 1}};
  counts.output = {{5, 2}, {9, 1}, {13, 4}, {30, 1}};
  return counts;
}

struct DistributionCase {
  std::string name;
  SamplingParams params;
};

void PrintTo(const DistributionCase& one, std::ostream* out) { *out << one.name; }

class SamplingDistributionTest : public ::testing::TestWithParam<DistributionCase> {};

// Seeds are fixed: the test has one outcome.
TEST_P(SamplingDistributionTest, MatchesBruteForce) {
  constexpr int kDraws = 60000;
  const std::vector<float> logits = RandomLogits(40, 1.7, 11);
  const TokenCounts counts = ExampleCounts();
  const std::vector<int32_t> forbidden = {2, 17};
  SampleRequest request = RequestFor(GetParam().params);
  request.counts = &counts;
  request.forbidden_ids = forbidden;
  std::vector<int> histogram(logits.size());
  for (int i = 0; i < kDraws; ++i) {
    request.index = static_cast<uint64_t>(i);
    ++histogram[static_cast<size_t>(MustSample(logits, request))];
  }
  const std::vector<double> expected = ExpectedDistribution(logits, request);
  for (size_t i = 0; i < logits.size(); ++i) {
    if (expected[i] == 0) {
      EXPECT_EQ(histogram[i], 0) << "token " << i;
      continue;
    }
    const double deviation = std::sqrt(kDraws * expected[i] * (1 - expected[i]));
    EXPECT_NEAR(histogram[i], kDraws * expected[i], 4.5 * deviation + 3) << "token " << i;
  }
}

std::vector<DistributionCase> DistributionCases() {
  std::vector<DistributionCase> cases;
  const auto add = [&](const char* name, auto change) {
    DistributionCase one;
    one.name = name;
    one.params.seed = 1000 + cases.size();
    change(one.params);
    cases.push_back(one);
  };
  add("Plain", [](SamplingParams&) {});
  add("LowTemperature", [](SamplingParams& p) { p.temperature = 0.4f; });
  add("HighTemperature", [](SamplingParams& p) { p.temperature = 3.0f; });
  add("TopK", [](SamplingParams& p) { p.top_k = 7; });
  add("TopKOfOne", [](SamplingParams& p) { p.top_k = 1; });
  add("TopKOfAll", [](SamplingParams& p) { p.top_k = 40; });
  add("TopP", [](SamplingParams& p) { p.top_p = 0.8f; });
  add("TopPOfZero", [](SamplingParams& p) { p.top_p = 0.0f; });
  add("TopPOfAlmostAll", [](SamplingParams& p) { p.top_p = 0.9999f; });
  add("MinP", [](SamplingParams& p) { p.min_p = 0.1f; });
  add("MinPOfOne", [](SamplingParams& p) { p.min_p = 1.0f; });
  add("Bias", [](SamplingParams& p) { p.logit_bias = {{1, 2.5f}, {3, -4.0f}, {2, 50.0f}}; });
  add("RepetitionPenalty", [](SamplingParams& p) { p.repetition_penalty = 1.5f; });
  add("RepetitionReward", [](SamplingParams& p) { p.repetition_penalty = 0.6f; });
  add("PresencePenalty", [](SamplingParams& p) { p.presence_penalty = 1.0f; });
  add("FrequencyPenalty", [](SamplingParams& p) { p.frequency_penalty = 0.5f; });
  add("NegativePenalties", [](SamplingParams& p) {
    p.presence_penalty = -1.0f;
    p.frequency_penalty = -0.5f;
  });
  add("TopKThenTopP", [](SamplingParams& p) {
    p.top_k = 10;
    p.top_p = 0.7f;
  });
  add("MinPThenTopP", [](SamplingParams& p) {
    p.min_p = 0.15f;
    p.top_p = 0.85f;
  });
  add("Everything", [](SamplingParams& p) {
    p.temperature = 0.8f;
    p.top_k = 12;
    p.top_p = 0.9f;
    p.min_p = 0.02f;
    p.repetition_penalty = 1.2f;
    p.presence_penalty = 0.3f;
    p.frequency_penalty = 0.2f;
    p.logit_bias = {{4, 1.0f}, {9, 3.0f}};
  });
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Options, SamplingDistributionTest,
                         ::testing::ValuesIn(DistributionCases()),
                         [](const auto& one) { return one.param.name; });

TEST(SamplingTest, GreedyTakesTheLowestIdOfTies) {
  SamplingParams params;
  params.temperature = 0;
  EXPECT_EQ(MustSample({1.0f, 3.0f, 2.0f, 3.0f}, RequestFor(params)), 1);
  EXPECT_EQ(MustSample({-0.0f, 0.0f}, RequestFor(params)), 0);
  EXPECT_EQ(MustSample({0.0f, -0.0f}, RequestFor(params)), 0);
  EXPECT_EQ(MustSample({-kInfinity, -5.0f, -kInfinity}, RequestFor(params)), 1);
}

TEST(SamplingTest, GreedyIgnoresTheOtherFilters) {
  SamplingParams params;
  params.temperature = 0;
  params.top_k = 3;
  params.top_p = 0.5f;
  params.min_p = 0.5f;
  const std::vector<float> logits = RandomLogits(1000, 3, 5);
  const auto expected = std::max_element(logits.begin(), logits.end()) - logits.begin();
  for (uint64_t seed = 0; seed < 20; ++seed) {
    params.seed = seed;
    EXPECT_EQ(MustSample(logits, RequestFor(params)), expected);
  }
}

TEST(SamplingTest, RepetitionPenaltyCountsPromptAndOutputOnce) {
  SamplingParams params;
  params.temperature = 0;
  params.repetition_penalty = 2.0f;
  TokenCounts counts;
  counts.prompt = {{0, 1}};
  counts.output = {{0, 5}};
  SampleRequest request = RequestFor(params);
  request.counts = &counts;
  EXPECT_EQ(MustSample({4.0f, 1.9f}, request), 0);  // 4 / 2, not 4 / 4
  EXPECT_EQ(MustSample({4.0f, 2.1f}, request), 1);
  EXPECT_EQ(MustSample({-1.0f, -1.9f}, request), 1);  // -1 * 2
  EXPECT_EQ(MustSample({-1.0f, -2.1f}, request), 0);
}

TEST(SamplingTest, PresenceAndFrequencyPenaltiesIgnoreThePrompt) {
  SamplingParams params;
  params.temperature = 0;
  params.presence_penalty = 1.0f;
  params.frequency_penalty = 0.5f;
  TokenCounts counts;
  counts.prompt = {{0, 9}};
  SampleRequest request = RequestFor(params);
  request.counts = &counts;
  EXPECT_EQ(MustSample({1.0f, 0.9f}, request), 0);
  counts.output = {{0, 3}};
  EXPECT_EQ(MustSample({4.0f, 1.4f}, request), 0);  // 4 - 1 - 3 * 0.5 = 1.5
  EXPECT_EQ(MustSample({4.0f, 1.6f}, request), 1);
}

TEST(SamplingTest, BiasComesBeforePenalties) {
  SamplingParams params;
  params.temperature = 0;
  params.repetition_penalty = 2.0f;
  params.logit_bias = {{0, 4.0f}};
  TokenCounts counts;
  counts.output = {{0, 1}};
  SampleRequest request = RequestFor(params);
  request.counts = &counts;
  EXPECT_EQ(MustSample({2.0f, 3.5f}, request), 1);  // (2 + 4) / 2 = 3
  EXPECT_EQ(MustSample({2.0f, 2.5f}, request), 0);
}

TEST(SamplingTest, LargeBiasForcesOrBansAToken) {
  const std::vector<float> logits = RandomLogits(100, 3, 8);
  SamplingParams params;
  params.logit_bias = {{42, 100.0f}};
  SampleRequest request = RequestFor(params);
  for (request.index = 0; request.index < 500; ++request.index) {
    EXPECT_EQ(MustSample(logits, request), 42);
  }
  params.logit_bias = {{42, -100.0f}};
  const std::vector<float> flat(100, 0.0f);
  for (request.index = 0; request.index < 5000; ++request.index) {
    EXPECT_NE(MustSample(flat, request), 42);
  }
}

TEST(SamplingTest, ForbiddenTokensAreNeverChosen) {
  const std::vector<int32_t> forbidden = {1, 3};
  const std::vector<float> logits = {0.0f, 50.0f, 1.0f, 60.0f};
  SamplingParams params;
  params.logit_bias = {{3, 1000.0f}};
  for (const float temperature : {0.0f, 1.0f, 100.0f}) {
    params.temperature = temperature;
    SampleRequest request = RequestFor(params);
    request.forbidden_ids = forbidden;
    for (request.index = 0; request.index < 200; ++request.index) {
      EXPECT_EQ(MustSample(logits, request) % 2, 0);
    }
  }
}

TEST(SamplingTest, IdsOutsideTheVocabularyChangeNothing) {
  SamplingParams params;
  params.temperature = 0;
  params.repetition_penalty = 2.0f;
  params.logit_bias = {{-1, 5.0f}, {2, 5.0f}};
  TokenCounts counts;
  counts.prompt = {{-7, 1}, {1000, 1}};
  counts.output = {{-7, 1}, {1000, 1}};
  const std::vector<int32_t> forbidden = {-1, 2, std::numeric_limits<int32_t>::max()};
  SampleRequest request = RequestFor(params);
  request.counts = &counts;
  request.forbidden_ids = forbidden;
  EXPECT_EQ(MustSample({1.0f, 2.0f}, request), 1);
}

TEST(SamplingTest, DependsOnSeedStreamAndIndexAlone) {
  const std::vector<float> logits = RandomLogits(5000, 1, 3);
  const std::vector<float> others = RandomLogits(700, 2, 4);
  SamplingParams params;
  params.seed = 77;
  params.top_p = 0.95f;
  const auto draw = [&](uint64_t seed, uint64_t stream, uint64_t index) {
    SamplingParams own = params;
    own.seed = seed;
    SampleRequest request = RequestFor(own);
    request.stream = stream;
    request.index = index;
    return MustSample(logits, request);
  };
  std::vector<int32_t> first;
  for (uint64_t i = 0; i < 50; ++i) first.push_back(draw(77, 0, i));
  // In another order, from another thread, between other draws: the same tokens.
  std::vector<int32_t> second(50);
  std::thread([&] {
    for (uint64_t i = 50; i-- > 0;) {
      SamplingParams other;
      MustSample(others, RequestFor(other));
      second[i] = draw(77, 0, i);
    }
  }).join();
  EXPECT_EQ(first, second);
  int same_seed = 0;
  int same_stream = 0;
  for (uint64_t i = 0; i < 50; ++i) {
    same_seed += draw(78, 0, i) == first[i];
    same_stream += draw(77, 1, i) == first[i];
  }
  EXPECT_LT(same_seed, 10);
  EXPECT_LT(same_stream, 10);
}

TEST(SamplingTest, VanishingTemperatureIsGreedy) {
  const std::vector<float> logits = RandomLogits(1000, 3, 9);
  const auto expected = std::max_element(logits.begin(), logits.end()) - logits.begin();
  for (const float temperature : {1e-6f, 1e-30f, std::numeric_limits<float>::denorm_min()}) {
    SamplingParams params;
    params.temperature = temperature;
    SampleRequest request = RequestFor(params);
    for (request.index = 0; request.index < 50; ++request.index) {
      EXPECT_EQ(MustSample(logits, request), expected) << temperature;
    }
  }
}

TEST(SamplingTest, EnormousTemperatureIsUniformOverPossibleTokens) {
  SamplingParams params;
  params.temperature = std::numeric_limits<float>::max();
  SampleRequest request = RequestFor(params);
  std::vector<int> histogram(4);
  for (request.index = 0; request.index < 9000; ++request.index) {
    ++histogram[static_cast<size_t>(MustSample({30.0f, -30.0f, -kInfinity, 0.0f}, request))];
  }
  EXPECT_EQ(histogram[2], 0);
  for (const size_t i : {0, 1, 3}) EXPECT_NEAR(histogram[i], 3000, 250);
}

TEST(SamplingTest, ExtremeLogitsAreNoError) {
  SamplingParams params;
  params.top_p = 0.9f;
  params.num_logprobs = 2;
  const std::vector<float> logits = {3e38f, -3e38f, -kInfinity};
  const auto token = SampleToken(logits, RequestFor(params));
  ASSERT_TRUE(token.ok()) << token.status();
  EXPECT_EQ(token->id, 0);
  EXPECT_EQ(token->logprob, 0);
}

TEST(SamplingTest, TopKCountsTiesByLowestId) {
  SamplingParams params;
  params.top_k = 2;
  SampleRequest request = RequestFor(params);
  for (request.index = 0; request.index < 300; ++request.index) {
    EXPECT_LT(MustSample({1.0f, 1.0f, 1.0f, 1.0f}, request), 2);
  }
}

TEST(SamplingTest, TopKBeyondTheVocabularyKeepsAll) {
  SamplingParams all;
  SamplingParams beyond;
  beyond.top_k = std::numeric_limits<int32_t>::max();
  const std::vector<float> logits = RandomLogits(100, 1, 21);
  SampleRequest request = RequestFor(all);
  SampleRequest request_beyond = RequestFor(beyond);
  for (uint64_t i = 0; i < 200; ++i) {
    request.index = request_beyond.index = i;
    EXPECT_EQ(MustSample(logits, request), MustSample(logits, request_beyond));
  }
}

TEST(SamplingTest, TopPOfZeroTakesTheLowestIdOfTheMostLikely) {
  for (const int32_t top_k : {0, 2, 3}) {
    SamplingParams params;
    params.top_p = 0;
    params.top_k = top_k;
    params.temperature = 5;
    SampleRequest request = RequestFor(params);
    for (request.index = 0; request.index < 100; ++request.index) {
      EXPECT_EQ(MustSample({0.5f, 1.0f, 1.0f, 0.9f}, request), 1);
    }
  }
}

TEST(SamplingTest, RepetitionPenaltiesFarFromOneAreNoError) {
  TokenCounts counts;
  counts.prompt = {{0, 1}, {1, 1}, {2, 1}};
  for (const float penalty : {2.5f, 100.0f, 1e-30f, std::numeric_limits<float>::min(),
                              std::numeric_limits<float>::max()}) {
    SCOPED_TRACE(penalty);
    for (const float temperature : {0.0f, 1.0f}) {
      SamplingParams params;
      params.temperature = temperature;
      params.repetition_penalty = penalty;
      ASSERT_TRUE(ValidateSamplingParams(params, 4).ok());
      SampleRequest request = RequestFor(params);
      request.counts = &counts;
      // Above 1 the only token that has not been seen wins, below 1 the one that was likely.
      EXPECT_EQ(MustSample({100.0f, -100.0f, -kInfinity, 60.0f}, request), penalty > 1 ? 3 : 0);
      // None is left but those: penalized is not forbidden.
      EXPECT_EQ(MustSample({-100.0f, -kInfinity, -kInfinity, -kInfinity}, request), 0);
    }
  }
}

TEST(SamplingTest, TopPStaysInTheNucleusOfALargeVocabulary) {
  const std::vector<float> logits = RandomLogits(128256, 4, 12);
  SamplingParams params;
  params.top_p = 0.5f;
  SampleRequest request = RequestFor(params);
  const std::vector<double> expected = ExpectedDistribution(logits, request);
  for (request.index = 0; request.index < 300; ++request.index) {
    EXPECT_GT(expected[static_cast<size_t>(MustSample(logits, request))], 0);
  }
}

TEST(SamplingTest, LogprobsAreThoseOfTheRawLogits) {
  const std::vector<float> logits = {1.0f, 2.0f, 3.0f, 2.0f};
  const double log_total = std::log(std::exp(1.0) + 2 * std::exp(2.0) + std::exp(3.0));
  SamplingParams params;
  params.temperature = 0;
  params.num_logprobs = 3;
  params.logit_bias = {{0, 100.0f}};
  const std::vector<int32_t> forbidden = {2};
  SampleRequest request = RequestFor(params);
  request.forbidden_ids = forbidden;
  const auto token = SampleToken(logits, request);
  ASSERT_TRUE(token.ok()) << token.status();
  EXPECT_EQ(token->id, 0);
  EXPECT_NEAR(token->logprob, 1 - log_total, 1e-6);
  ASSERT_EQ(token->top.size(), 3u);
  const std::vector<int32_t> ids = {2, 1, 3};
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(token->top[i].id, ids[i]);
    EXPECT_NEAR(token->top[i].logprob, logits[static_cast<size_t>(ids[i])] - log_total, 1e-6);
  }
}

TEST(SamplingTest, LogprobsOfAllTokensAddUpToOne) {
  const std::vector<float> logits = RandomLogits(3001, 2, 6);
  SamplingParams params;
  params.num_logprobs = 3001;
  const auto token = SampleToken(logits, RequestFor(params));
  ASSERT_TRUE(token.ok()) << token.status();
  ASSERT_EQ(token->top.size(), logits.size());
  double total = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    total += std::exp(double{token->top[i].logprob});
    if (i > 0) {
      EXPECT_LE(token->top[i].logprob, token->top[i - 1].logprob);
    }
  }
  EXPECT_NEAR(total, 1, 1e-5);
}

TEST(SamplingTest, LogprobsAreAbsentUnlessAskedFor) {
  SamplingParams params;
  auto token = SampleToken({0.0f, 0.0f}, RequestFor(params));
  ASSERT_TRUE(token.ok());
  EXPECT_EQ(token->logprob, 0);
  EXPECT_TRUE(token->top.empty());
  params.num_logprobs = 0;
  token = SampleToken({0.0f, 0.0f}, RequestFor(params));
  ASSERT_TRUE(token.ok());
  EXPECT_NEAR(token->logprob, std::log(0.5), 1e-6);
  EXPECT_TRUE(token->top.empty());
}

TEST(SamplingTest, RejectsLogitsThatAreNotNumbers) {
  for (const float temperature : {0.0f, 1.0f}) {
    SamplingParams params;
    params.temperature = temperature;
    for (const float bad : {kNan, -kNan, kInfinity}) {
      const auto token = SampleToken({0.0f, 1.0f, bad, 2.0f}, RequestFor(params));
      EXPECT_EQ(token.status().code(), absl::StatusCode::kInternal);
      EXPECT_THAT(std::string(token.status().message()), HasSubstr("entry 2"));
    }
    const auto none = SampleToken({-kInfinity, -kInfinity}, RequestFor(params));
    EXPECT_EQ(none.status().code(), absl::StatusCode::kInternal);
    const auto empty = SampleToken({}, RequestFor(params));
    EXPECT_EQ(empty.status().code(), absl::StatusCode::kInternal);
  }
}

TEST(SamplingTest, AVocabularyThatIsAllForbiddenIsTheRequestsFault) {
  SamplingParams params;
  const std::vector<int32_t> forbidden = {0, 1};
  SampleRequest request = RequestFor(params);
  request.forbidden_ids = forbidden;
  const auto token = SampleToken({0.0f, 1.0f}, request);
  EXPECT_EQ(token.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(token.status().message()),
              AllOf(StartsWith("min_tokens: "), HasSubstr("forbidden")));
}

TEST(LogProbabilityTest, MatchesADoubleComputation) {
  const std::vector<float> logits = RandomLogits(8192, 3, 2);
  double total = 0;
  for (const float logit : logits) total += std::exp(double{logit});
  for (const int32_t id : {0, 17, 8191}) {
    EXPECT_NEAR(LogProbability(logits, id), logits[static_cast<size_t>(id)] - std::log(total),
                1e-6);
  }
  EXPECT_EQ(LogProbability({0.0f, -kInfinity}, 1), -kInfinity);
  EXPECT_TRUE(std::isnan(LogProbability({0.0f, kNan}, 0)));
  EXPECT_TRUE(std::isnan(LogProbability({-kInfinity, -kInfinity}, 0)));
}

TEST(ValidateSamplingParamsTest, AcceptsDefaultsAndBounds) {
  SamplingParams params;
  EXPECT_TRUE(ValidateSamplingParams(params, 10).ok());
  params.temperature = 0;
  params.top_k = std::numeric_limits<int32_t>::max();
  params.top_p = 0;
  params.min_p = 1;
  params.repetition_penalty = 2.5f;
  params.presence_penalty = -2;
  params.frequency_penalty = 2;
  params.logit_bias = {{0, -100.0f}, {9, 100.0f}};
  params.num_logprobs = 10;
  EXPECT_TRUE(ValidateSamplingParams(params, 10).ok());
}

TEST(ValidateSamplingParamsTest, RejectsByName) {
  const auto expect_rejected = [](const char* field, auto change) {
    SamplingParams params;
    change(params);
    const absl::Status status = ValidateSamplingParams(params, 10);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(field), HasSubstr("expected"), HasSubstr("found")));
  };
  for (const float bad : {-0.1f, kNan, kInfinity}) {
    expect_rejected("temperature", [&](SamplingParams& p) { p.temperature = bad; });
    expect_rejected("top_p", [&](SamplingParams& p) { p.top_p = bad; });
    expect_rejected("min_p", [&](SamplingParams& p) { p.min_p = bad; });
    expect_rejected("repetition_penalty", [&](SamplingParams& p) { p.repetition_penalty = bad; });
  }
  for (const float bad : {-2.1f, 2.1f, kNan, -kInfinity}) {
    expect_rejected("presence_penalty", [&](SamplingParams& p) { p.presence_penalty = bad; });
    expect_rejected("frequency_penalty", [&](SamplingParams& p) { p.frequency_penalty = bad; });
  }
  for (const float bad : {kNan, kInfinity, -kInfinity}) {
    expect_rejected("logit_bias", [&](SamplingParams& p) { p.logit_bias = {{1, bad}}; });
  }
  expect_rejected("top_p", [](SamplingParams& p) { p.top_p = 1.1f; });
  expect_rejected("min_p", [](SamplingParams& p) { p.min_p = 1.1f; });
  expect_rejected("repetition_penalty", [](SamplingParams& p) { p.repetition_penalty = 0; });
  expect_rejected("top_k", [](SamplingParams& p) { p.top_k = -1; });
  expect_rejected("logit_bias", [](SamplingParams& p) { p.logit_bias = {{10, 0.0f}}; });
  expect_rejected("logit_bias", [](SamplingParams& p) { p.logit_bias = {{-1, 0.0f}}; });
  expect_rejected("logit_bias", [](SamplingParams& p) { p.logit_bias = {{1, 0.0f}, {1, 1.0f}}; });
  expect_rejected("num_logprobs", [](SamplingParams& p) { p.num_logprobs = -2; });
  expect_rejected("num_logprobs", [](SamplingParams& p) { p.num_logprobs = 11; });
}

}  // namespace
}  // namespace ultrasketch
