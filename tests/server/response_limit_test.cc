#include "server/response_limit.h"

#include <algorithm>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/strings.h"
#include "server/response_translation.h"
#include "tests/serving/engine_loop/testing.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(ResponseLimitTest, IsWhatAClientOfGrpcTakesUnlessItSaysOtherwise) {
  v1::GenerateRequest message;
  EXPECT_EQ(*MaxResponseBytes(message), 4'194'304);
  message.set_max_response_bytes(1);
  EXPECT_EQ(*MaxResponseBytes(message), 1);
  message.set_max_response_bytes(-1);
  EXPECT_EQ(*MaxResponseBytes(message), std::numeric_limits<int64_t>::max());
  for (const int64_t bad : {int64_t{0}, int64_t{-2}, std::numeric_limits<int64_t>::min()}) {
    message.set_max_response_bytes(bad);
    EXPECT_TRUE(absl::IsInvalidArgument(MaxResponseBytes(message).status())) << bad;
  }
}

TEST(ResponseLimitTest, ALargerAnswerIsRefusedSayingHowToGetIt) {
  EXPECT_TRUE(CheckResponseBytes(4'194'304, kDefaultMaxResponseBytes).ok());
  const absl::Status status = CheckResponseBytes(4'194'305, kDefaultMaxResponseBytes);
  EXPECT_TRUE(absl::IsOutOfRange(status));
  EXPECT_THAT(S(status.message()),
              AllOf(HasSubstr("4194305"), HasSubstr("grpc.max_receive_message_length"),
                    HasSubstr("max_response_bytes")));
}

// Log-probabilities of tokens that take as few bytes as any.
SampledToken SmallToken(int32_t num_top) {
  SampledToken token;
  for (int32_t i = 0; i < num_top; ++i) token.top.push_back({i, 0.0f});
  return token;
}

TEST(ResponseLimitTest, TheLeastIsNotMoreThanAnAnswerHas) {
  const auto tokenizer = ByteTokenizer();
  std::mt19937 random(3);
  const auto uniform = [&random](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  for (int i = 0; i < 200; ++i) {
    GenerationRequest request;
    request.prompt_ids.assign(static_cast<size_t>(uniform(1, 40)), 0);
    request.max_tokens = uniform(1, 40);
    request.num_completions = uniform(1, 3);
    request.prompt_logprobs = uniform(-1, 4);
    request.sampling.num_logprobs = uniform(-1, 4);
    int num_tokens = request.max_tokens;
    if (i % 2 == 0) {
      request.stop_token_ids = {1};
      request.min_tokens = uniform(0, request.max_tokens);
      num_tokens = std::max(request.min_tokens, 1);
    }

    GenerationTranslator translator(request, tokenizer);
    v1::GenerateResponse response;
    int64_t num_counted = 0;
    for (int32_t completion = 0; completion < request.num_completions; ++completion) {
      v1::Completion& target = *response.add_completions();
      for (int t = 0; t < num_tokens; ++t) {
        GenerationDelta delta;
        delta.completion = completion;
        delta.token_ids = {0};
        if (request.sampling.num_logprobs >= 0) {
          delta.logprobs = {SmallToken(request.sampling.num_logprobs)};
        }
        num_counted += translator.AppendDelta(delta, target);
      }
    }
    const auto size_of = [](const auto& message) {
      return static_cast<int64_t>(message.ByteSizeLong());
    };
    EXPECT_LE(num_counted, size_of(response));
    GenerationResult result;
    if (request.prompt_logprobs >= 0) {
      result.prompt_logprobs.assign(request.prompt_ids.size() - 1,
                                    SmallToken(request.prompt_logprobs));
    }
    translator.AppendPromptLogprobs(result, *response.mutable_prompt_logprobs());
    EXPECT_LE(MinResponseBytes(request), size_of(response));
    if (request.sampling.num_logprobs >= 0) {
      EXPECT_GE(3 * MinResponseBytes(request), size_of(response)) << "of no use";
    }
    EXPECT_LE(MinStreamMessageBytes(request), size_of(translator.FinalOf(result)));

    ScoreRequest score;
    score.token_ids = request.prompt_ids;
    score.top_logprobs = std::max(request.prompt_logprobs, 0);
    v1::ScoreResponse scored;
    scored.mutable_token_ids()->Add(score.token_ids.begin(), score.token_ids.end());
    AppendLogprobsOfText(
        0, std::vector<SampledToken>(score.token_ids.size() - 1, SmallToken(score.top_logprobs)),
        *tokenizer, *scored.mutable_logprobs());
    EXPECT_LE(MinResponseBytes(score), size_of(scored));
  }
}

}  // namespace
}  // namespace ultrasketch
