#include "engine/serving/engine_loop/validate_request.h"

#include <functional>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

RequestLimits Limits() {
  RequestLimits limits;
  limits.vocab_size = 300;
  limits.max_queued_requests = 16;
  limits.scheduler.num_blocks = 40;
  limits.scheduler.block_size = 4;
  limits.scheduler.max_context_tokens = 200;
  return limits;
}

GenerationRequest ValidRequest() {
  GenerationRequest request;
  request.prompt_ids = {1, 2, 3};
  request.max_tokens = 20;
  return request;
}

TEST(ValidateRequestTest, AcceptsAPlainRequest) {
  EXPECT_TRUE(ValidateRequest(ValidRequest(), Limits()).ok());
}

struct Case {
  std::string name;
  std::string message;  // begins so
  std::function<void(GenerationRequest&)> spoil;
};

class ValidateRequestBadTest : public ::testing::TestWithParam<Case> {};

TEST_P(ValidateRequestBadTest, IsRefusedNamingTheField) {
  GenerationRequest request = ValidRequest();
  GetParam().spoil(request);
  const absl::Status status = ValidateRequest(request, Limits());
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), StartsWith(GetParam().message));
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

INSTANTIATE_TEST_SUITE_P(
    Fields, ValidateRequestBadTest,
    ::testing::Values(
        Case{"EmptyPrompt", "input: ", [](auto& r) { r.prompt_ids.clear(); }},
        Case{"PromptAsLongAsTheContext", "input: 200 tokens exceed the model's context of 200",
             [](auto& r) { r.prompt_ids.assign(200, 1); }},
        Case{"NegativeId", "token_ids: id -1 at index 1 ", [](auto& r) { r.prompt_ids[1] = -1; }},
        Case{"IdBeyondTheVocabulary", "token_ids: id 300 at index 2 ",
             [](auto& r) { r.prompt_ids[2] = 300; }},
        Case{"NoTokens", "max_tokens: 0 is less than 1", [](auto& r) { r.max_tokens = 0; }},
        Case{"NegativeTokens", "max_tokens: -5 ", [](auto& r) { r.max_tokens = -5; }},
        Case{"NegativeTokensToScore", "max_tokens: -5 ",
             [](auto& r) {
               r.max_tokens = -5;
               r.prompt_logprobs = 0;
             }},
        Case{"OneTokenToScore", "input: one token",
             [](auto& r) {
               r.max_tokens = 0;
               r.prompt_logprobs = 0;
               r.prompt_ids = {1};
             }},
        Case{"MoreThanTheContextToScore", "input: 201 tokens exceed",
             [](auto& r) {
               r.max_tokens = 0;
               r.prompt_logprobs = 0;
               r.prompt_ids.assign(201, 1);
             }},
        Case{"MoreThanTheCacheHolds", "max_tokens: with a prompt of 3 tokens, 159 is too many",
             [](auto& r) { r.max_tokens = 159; }},
        Case{"MaxTokensAtItsLimit", "max_tokens: with a prompt of 3 tokens, 2147483647",
             [](auto& r) { r.max_tokens = std::numeric_limits<int32_t>::max(); }},
        Case{"NegativeMinTokens", "min_tokens: -1 ", [](auto& r) { r.min_tokens = -1; }},
        Case{"MinAboveMax", "min_tokens: 21 ", [](auto& r) { r.min_tokens = 21; }},
        Case{"NanTemperature", "temperature", [](auto& r) { r.sampling.temperature = kNan; }},
        Case{"NanTopP", "top_p", [](auto& r) { r.sampling.top_p = kNan; }},
        Case{"NanMinP", "min_p", [](auto& r) { r.sampling.min_p = kNan; }},
        Case{"NanRepetition", "repetition_penalty",
             [](auto& r) { r.sampling.repetition_penalty = kNan; }},
        Case{"NanPresence", "presence_penalty",
             [](auto& r) { r.sampling.presence_penalty = kNan; }},
        Case{"NanFrequency", "frequency_penalty",
             [](auto& r) { r.sampling.frequency_penalty = kNan; }},
        Case{"BiasOfAnUnknownToken", "logit_bias",
             [](auto& r) {
               r.sampling.logit_bias = {{300, 1.0f}};
             }},
        Case{"ManyLogprobs", "logprobs: 21 ", [](auto& r) { r.sampling.num_logprobs = 21; }},
        Case{"ManyPromptLogprobs", "prompt_logprobs: 21 ", [](auto& r) { r.prompt_logprobs = 21; }},
        Case{"NegativePromptLogprobs", "prompt_logprobs: -2 ",
             [](auto& r) { r.prompt_logprobs = -2; }},
        Case{"EmptyStop", "stop: string 1 is empty",
             [](auto& r) {
               r.stop = {"a", ""};
             }},
        Case{"ManyStops", "stop: 17 strings", [](auto& r) { r.stop.assign(17, "a"); }},
        Case{"LongStop", "stop: string 0 has 1025 bytes",
             [](auto& r) { r.stop = {std::string(1025, 'a')}; }},
        Case{"StopIsNotUtf8", "stop: string 0 is not UTF-8", [](auto& r) { r.stop = {"\xFF"}; }},
        Case{"StopTokenBeyondTheVocabulary", "stop_token_ids: id 300 ",
             [](auto& r) { r.stop_token_ids = {300}; }},
        Case{"ManyStopTokens", "stop_token_ids: 1025 ids",
             [](auto& r) { r.stop_token_ids.assign(1025, 1); }},
        Case{"EndTokenBeyondTheVocabulary", "eos_token_ids: id -1 ",
             [](auto& r) { r.eos_token_ids = {-1}; }},
        Case{"NoCompletions", "n: 0 ", [](auto& r) { r.num_completions = 0; }},
        Case{"MoreCompletionsThanTheQueueHolds", "n: 17 is outside [1, 16]",
             [](auto& r) { r.num_completions = 17; }}),
    [](const auto& param) { return param.param.name; });

TEST(ValidateRequestTest, AcceptsTheLongestPromptAndTheLongestText) {
  RequestLimits limits = Limits();
  limits.scheduler.num_blocks = 50;
  GenerationRequest request = ValidRequest();
  request.prompt_ids.assign(199, 1);
  request.max_tokens = 1000;  // ends at the context
  EXPECT_TRUE(ValidateRequest(request, limits).ok());
  request.max_tokens = 0;
  request.prompt_logprobs = 5;
  request.prompt_ids.assign(200, 1);
  EXPECT_TRUE(ValidateRequest(request, limits).ok());
}

TEST(ValidateRequestTest, AcceptsWhatJustFitsIntoTheCache) {
  GenerationRequest request = ValidRequest();
  request.max_tokens = 158;  // the last token is never computed: 160 are
  EXPECT_TRUE(ValidateRequest(request, Limits()).ok());
}

TEST(ValidateRequestTest, MinTokensMustLeaveATokenToChoose) {
  GenerationRequest request = ValidRequest();
  request.min_tokens = 1;
  for (int32_t id = 0; id < 299; ++id) request.stop_token_ids.push_back(id);
  for (int i = 0; i < 5; ++i) request.stop_token_ids.push_back(0);  // more ids, not more tokens
  EXPECT_TRUE(ValidateRequest(request, Limits()).ok());
  request.eos_token_ids = {299};
  EXPECT_THAT(std::string(ValidateRequest(request, Limits()).message()),
              StartsWith("min_tokens: 1 leaves no token to choose: all 300 tokens"));
  request.min_tokens = 0;
  EXPECT_TRUE(ValidateRequest(request, Limits()).ok());
}

TEST(ValidateRequestTest, OptionsAreCheckedWithoutAPrompt) {
  GenerationRequest request = ValidRequest();
  request.prompt_ids.clear();
  EXPECT_TRUE(ValidateOptions(request, 300).ok());
  request.num_completions = 129;
  EXPECT_EQ(std::string(ValidateOptions(request, 300).message()), "n: 129 is outside [1, 128]");
}

TEST(ValidateRequestTest, PenaltiesHaveNoUpperLimit) {
  GenerationRequest request = ValidRequest();
  request.sampling.repetition_penalty = 1000;
  request.sampling.top_p = 0;
  EXPECT_TRUE(ValidateRequest(request, Limits()).ok());
}

TEST(ValidateRequestTest, SaysWhatTheCacheHolds) {
  GenerationRequest request = ValidRequest();
  request.max_tokens = 190;
  EXPECT_THAT(std::string(ValidateRequest(request, Limits()).message()),
              HasSubstr("can never fit into the KV cache of 160 tokens"));
}

}  // namespace
}  // namespace ultrasketch
