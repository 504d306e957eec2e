// What the engine loop generates: the text depends on the request alone.

#include "engine/serving/engine_loop/engine_loop.h"

#include <cmath>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/serving/engine_loop/blocking.h"
#include "engine/serving/engine_loop/token_logprobs.h"
#include "tests/serving/engine_loop/fake_model.h"
#include "tests/serving/engine_loop/testing.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAreArray;
using ::testing::SizeIs;

LogitsFunction HashLogitsOf(int32_t vocab_size) {
  return [vocab_size](absl::Span<const int32_t> tokens) { return HashLogits(tokens, vocab_size); };
}

std::unique_ptr<EngineLoop> StartLoop(FakeModelOptions options = {},
                                      const EngineLoopOptions& loop = {}) {
  return EngineLoop::Start(std::make_unique<FakeModel>(std::move(options)), ByteTokenizer(), loop);
}

GenerationRequest Request(std::string_view prompt, int32_t max_tokens, uint64_t seed = 1) {
  GenerationRequest request;
  request.prompt_ids = Bytes(prompt);
  request.max_tokens = max_tokens;
  request.sampling.seed = seed;
  return request;
}

std::vector<int32_t> Alone(const GenerationRequest& request, uint64_t completion = 0) {
  return GenerateAlone(HashLogitsOf(300), request.prompt_ids, request.sampling, request.max_tokens,
                       completion);
}

TEST(EngineLoopTest, GeneratesWhatTheModelSays) {
  const auto loop = StartLoop();
  const GenerationRequest request = Request("once upon a time", 40);
  const auto outputs = GenerateAndWait(*loop, request);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  ASSERT_THAT(*outputs, SizeIs(1));
  const GenerationOutput& output = outputs->front();
  EXPECT_THAT(output.token_ids, ElementsAreArray(Alone(request)));
  EXPECT_EQ(output.text, ByteTokenizer()->Decode(output.token_ids, true));
  EXPECT_EQ(output.result.reason, FinishReason::kLength);
  EXPECT_EQ(output.result.num_prompt_tokens, 16);
  EXPECT_EQ(output.result.num_completion_tokens, 40);
  EXPECT_EQ(output.result.timing.num_steps, 40);
  EXPECT_EQ(output.result.timing.mean_batch_size, 1);
  EXPECT_GE(output.result.timing.prefill, absl::ZeroDuration());
  EXPECT_GE(output.result.timing.decode, absl::ZeroDuration());
}

TEST(EngineLoopTest, WhatWasDoneBeforeSubmitCountsAsWaiting) {
  const auto loop = StartLoop();
  GenerationRequest request = Request("once", 2);
  request.arrival = absl::Now() - absl::Hours(1);
  const auto outputs = GenerateAndWait(*loop, request);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  EXPECT_GE(outputs->front().result.timing.queue, absl::Hours(1));
  EXPECT_LT(outputs->front().result.timing.prefill, absl::Hours(1));
}

TEST(EngineLoopTest, ComputesLongPromptsInChunks) {
  EngineLoopOptions options;
  options.max_step_tokens = 7;
  const auto loop = StartLoop({}, options);
  const GenerationRequest request = Request(std::string(100, 'x'), 3);
  const auto outputs = GenerateAndWait(*loop, request);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  EXPECT_THAT(outputs->front().token_ids, ElementsAreArray(Alone(request)));
  EXPECT_EQ(outputs->front().result.timing.num_steps, 15 + 2);
}

TEST(EngineLoopTest, EndsAtTheContext) {
  FakeModelOptions options;
  options.max_position_embeddings = 20;
  const auto loop = StartLoop(options);
  const auto outputs = GenerateAndWait(*loop, Request("0123456789abcde", 100));
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  EXPECT_THAT(outputs->front().token_ids, SizeIs(5));
  EXPECT_EQ(outputs->front().result.reason, FinishReason::kLength);
}

TEST(EngineLoopTest, EndTokensAreNotChosenBeforeMinTokens) {
  FakeModelOptions options;
  options.logits = [](absl::Span<const int32_t>) {
    std::vector<float> logits(300, 0.0f);
    logits['a'] = 5;
    logits[kEndToken] = 10;
    return logits;
  };
  const auto loop = StartLoop(options);
  GenerationRequest request = Request("x", 20);
  request.sampling.temperature = 0;
  request.eos_token_ids = {kEndToken};
  request.min_tokens = 3;
  const auto outputs = GenerateAndWait(*loop, request);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  EXPECT_EQ(outputs->front().text, "aaa");
  EXPECT_EQ(outputs->front().result.num_completion_tokens, 4);
  EXPECT_EQ(outputs->front().result.reason, FinishReason::kStop);
}

TEST(EngineLoopTest, PenaltiesSeeTheTokensBefore) {
  const auto loop = StartLoop();
  GenerationRequest request = Request("aaaa", 30);
  request.sampling.repetition_penalty = 1.5f;
  request.sampling.frequency_penalty = 1.0f;
  request.sampling.temperature = 0.2f;
  const auto outputs = GenerateAndWait(*loop, request);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  EXPECT_THAT(outputs->front().token_ids, ElementsAreArray(Alone(request)));
}

TEST(EngineLoopTest, CompletionsOfARequestDifferAndShareThePrompt) {
  const auto loop = StartLoop();
  GenerationRequest request = Request("a prompt of 22 tokens.", 12);
  request.num_completions = 5;
  const auto outputs = GenerateAndWait(*loop, request);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  ASSERT_THAT(*outputs, SizeIs(5));
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ((*outputs)[i].result.completion, static_cast<int32_t>(i));
    EXPECT_THAT((*outputs)[i].token_ids, ElementsAreArray(Alone(request, i))) << i;
    EXPECT_EQ((*outputs)[i].result.num_cached_prompt_tokens, i == 0 ? 0 : 20);
  }
  EXPECT_NE((*outputs)[0].token_ids, (*outputs)[1].token_ids);
  EXPECT_EQ(loop->stats().kv_blocks_used, 0);
}

TEST(EngineLoopTest, ComputesABeginningOnce) {
  for (const bool prefix_cache : {true, false}) {
    EngineLoopOptions options;
    options.prefix_cache = prefix_cache;
    const auto loop = StartLoop({}, options);
    const GenerationRequest first = Request("a system prompt, and a question", 10);  // 31 tokens
    GenerationRequest second = Request("a system prompt, and another", 10, 5);
    auto outputs = GenerateAndWait(*loop, first);
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    EXPECT_EQ(outputs->front().result.num_cached_prompt_tokens, 0);
    outputs = GenerateAndWait(*loop, second);
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    EXPECT_EQ(outputs->front().result.num_cached_prompt_tokens, prefix_cache ? 20 : 0);
    EXPECT_THAT(outputs->front().token_ids, ElementsAreArray(Alone(second)));

    // The next turn of a conversation: what was generated is found, too.
    second.prompt_ids.insert(second.prompt_ids.end(), outputs->front().token_ids.begin(),
                             outputs->front().token_ids.end());
    second.prompt_ids.push_back('?');
    outputs = GenerateAndWait(*loop, second);
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    EXPECT_EQ(outputs->front().result.num_cached_prompt_tokens, prefix_cache ? 36 : 0);
    EXPECT_THAT(outputs->front().token_ids, ElementsAreArray(Alone(second)));

    const EngineLoopStats stats = loop->stats();
    EXPECT_EQ(stats.prefix_cache_hit_tokens, prefix_cache ? 56 : 0);
    EXPECT_EQ(stats.prefix_cache_hit_tokens + stats.prefix_cache_miss_tokens, 31 + 28 + 39);
    EXPECT_EQ(stats.kv_blocks_used, 0);
    EXPECT_EQ(stats.kv_blocks_cached > 0, prefix_cache);
  }
}

// Many at once, with prompts in chunks and a cache so small that sequences are preempted: each
// generates what it generates alone.
TEST(EngineLoopTest, TextDoesNotDependOnWhatElseIsInTheBatch) {
  FakeModelOptions model;
  model.model.kv_cache_tokens = 240;
  EngineLoopOptions options;
  options.max_step_tokens = 23;
  options.max_running_sequences = 9;
  const auto loop = StartLoop(model, options);
  std::vector<std::thread> clients;
  for (int client = 0; client < 8; ++client) {
    clients.emplace_back([&loop, client] {
      for (int i = 0; i < 6; ++i) {
        const int number = client * 6 + i;
        GenerationRequest request = Request(std::string(static_cast<size_t>(1 + number % 50), 'p'),
                                            1 + number * 7 % 60, static_cast<uint64_t>(number % 5));
        request.priority = number % 3;
        request.num_completions = 1 + number % 2;
        const auto outputs = GenerateAndWait(*loop, request);
        ASSERT_TRUE(outputs.ok()) << outputs.status();
        for (size_t c = 0; c < outputs->size(); ++c) {
          EXPECT_THAT((*outputs)[c].token_ids, ElementsAreArray(Alone(request, c)));
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
  const EngineLoopStats stats = loop->stats();
  EXPECT_GT(stats.num_preemptions, 0);
  EXPECT_EQ(stats.kv_blocks_used, 0);
  EXPECT_EQ(stats.num_running, 0);
  EXPECT_EQ(stats.num_waiting, 0);
}

TEST(EngineLoopTest, EqualSeedsGiveEqualTextAloneAndTogether) {
  const auto loop = StartLoop();
  const GenerationRequest request = Request("the same prompt", 30, 42);
  const auto first = std::make_shared<RecordingSink>();
  const auto second = std::make_shared<RecordingSink>();
  ASSERT_TRUE(loop->Submit(request, first).ok());
  ASSERT_TRUE(loop->Submit(request, second).ok());
  EXPECT_THAT(first->Wait().token_ids, ElementsAreArray(Alone(request)));
  EXPECT_THAT(second->Wait().token_ids, ElementsAreArray(Alone(request)));
}

TEST(EngineLoopTest, GivesLogprobsOfTheChosenTokens) {
  const auto loop = StartLoop();
  GenerationRequest request = Request("abc", 5);
  request.sampling.num_logprobs = 2;
  const auto outputs = GenerateAndWait(*loop, request);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  std::vector<int32_t> tokens = request.prompt_ids;
  ASSERT_THAT(outputs->front().logprobs, SizeIs(5));
  for (const SampledToken& token : outputs->front().logprobs) {
    EXPECT_NEAR(token.logprob, LogProbability(HashLogits(tokens, 300), token.id), 1e-4);
    EXPECT_THAT(token.top, SizeIs(2));
    tokens.push_back(token.id);
  }
}

void ExpectLogprobsOf(const std::vector<SampledToken>& logprobs, const std::vector<int32_t>& ids,
                      int32_t num_top) {
  ASSERT_EQ(logprobs.size(), ids.size() - 1);
  for (size_t i = 0; i + 1 < ids.size(); ++i) {
    const std::vector<float> logits = HashLogits(absl::MakeConstSpan(ids).subspan(0, i + 1), 300);
    const SampledToken expected = *LogprobsOfToken(logits, ids[i + 1], num_top);
    EXPECT_EQ(logprobs[i].id, expected.id);
    EXPECT_EQ(logprobs[i].logprob, expected.logprob);
    ASSERT_EQ(logprobs[i].top.size(), expected.top.size());
    for (size_t j = 0; j < expected.top.size(); ++j) {
      EXPECT_EQ(logprobs[i].top[j].id, expected.top[j].id);
    }
  }
}

TEST(EngineLoopTest, GivesLogprobsOfThePromptWithTheFirstCompletion) {
  const auto loop = StartLoop();
  GenerationRequest request = Request("longer than the sixteen rows of logits in a step", 4);
  request.prompt_logprobs = 3;
  request.num_completions = 2;
  const auto outputs = GenerateAndWait(*loop, request);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  ExpectLogprobsOf((*outputs)[0].result.prompt_logprobs, request.prompt_ids, 3);
  EXPECT_THAT((*outputs)[1].result.prompt_logprobs, SizeIs(0));
  EXPECT_THAT((*outputs)[0].token_ids, ElementsAreArray(Alone(request, 0)));
  EXPECT_THAT((*outputs)[1].token_ids, ElementsAreArray(Alone(request, 1)));
}

TEST(EngineLoopTest, ScoresGivenTokens) {
  const auto loop = StartLoop();
  for (const size_t length : {2u, 17u, 100u, 256u}) {
    ScoreRequest request;
    request.token_ids = Bytes(std::string(length, 's'));
    request.top_logprobs = 1;
    const absl::StatusOr<ScoreResult> score = ScoreAndWait(*loop, request);
    ASSERT_TRUE(score.ok()) << score.status();
    ExpectLogprobsOf(score->logprobs, request.token_ids, 1);
    double sum = 0;
    for (const SampledToken& token : score->logprobs) sum += token.logprob;
    EXPECT_DOUBLE_EQ(score->sum_logprob, sum);
  }
  EXPECT_EQ(loop->stats().kv_blocks_used, 0);
}

TEST(EngineLoopTest, ScoresBesideGeneration) {
  FakeModelOptions model;
  model.model.kv_cache_tokens = 200;
  const auto loop = StartLoop(model);
  std::vector<std::thread> clients;
  for (int client = 0; client < 6; ++client) {
    clients.emplace_back([&loop, client] {
      for (int i = 0; i < 5; ++i) {
        if (client % 2 == 0) {
          ScoreRequest request;
          request.token_ids = Bytes(std::string(static_cast<size_t>(30 + 10 * client + i), 's'));
          const absl::StatusOr<ScoreResult> score = ScoreAndWait(*loop, request);
          ASSERT_TRUE(score.ok()) << score.status();
          ExpectLogprobsOf(score->logprobs, request.token_ids, 0);
        } else {
          GenerationRequest request = Request(std::string(static_cast<size_t>(20 + i), 'g'), 60);
          request.prompt_logprobs = 0;
          const auto outputs = GenerateAndWait(*loop, request);
          ASSERT_TRUE(outputs.ok()) << outputs.status();
          EXPECT_THAT(outputs->front().token_ids, ElementsAreArray(Alone(request)));
          ExpectLogprobsOf(outputs->front().result.prompt_logprobs, request.prompt_ids, 0);
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
}

TEST(EngineLoopTest, RefusesBadScoresNamingTheField) {
  const auto loop = StartLoop();
  ScoreRequest request;
  request.token_ids = {1, 2};
  request.top_logprobs = 1000;
  absl::Status status = ScoreAndWait(*loop, request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()), "top_logprobs: 1000 is outside [0, 20]");
  request.top_logprobs = -1;
  EXPECT_EQ(ScoreAndWait(*loop, request).status().code(), absl::StatusCode::kInvalidArgument);
  request.top_logprobs = 0;
  request.token_ids = {1};
  EXPECT_EQ(ScoreAndWait(*loop, request).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(EngineLoopTest, WaitingCallersGetTheirDeltasOnTheirOwnThread) {
  const auto loop = StartLoop();
  std::string text;
  int num_deltas = 0;
  const auto outputs = GenerateAndWait(*loop, Request("abc", 8), [&](const GenerationDelta& delta) {
    text += delta.text;  // unsynchronised: ThreadSanitizer would object to another thread
    ++num_deltas;
  });
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  // Those that waited together came as one.
  EXPECT_GE(num_deltas, 1);
  EXPECT_LE(num_deltas, 8);
  EXPECT_EQ(text, outputs->front().text);
}

TEST(EngineLoopTest, RefusesBadRequestsAtSubmit) {
  const auto loop = StartLoop();
  const auto status = GenerateAndWait(*loop, Request("", 8)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace ultrasketch
