// The engine loop on a real checkpoint with its own tokenizer and the CPU backend.

#include <atomic>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/backends/backend.h"
#include "engine/base/status.h"
#include "engine/format/checkpoint.h"
#include "engine/models/model.h"
#include "engine/serving/engine_loop/blocking.h"
#include "engine/serving/engine_loop/engine_loop.h"

namespace ultrasketch {
namespace {

class RealModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto tokenizer = Tokenizer::Load(std::string(SAMPLE_MODEL_DIR) + "/tokenizer.json");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  // A loop with its own instance of the model.
  std::unique_ptr<EngineLoop> Start(int64_t kv_cache_tokens = 4096,
                                    const EngineLoopOptions& options = {},
                                    const std::string& device = "cpu",
                                    KvCacheType kv_cache_type = KvCacheType::kFp16) {
    absl::StatusOr<std::unique_ptr<Model>> model = Load(kv_cache_tokens, device, kv_cache_type);
    EXPECT_TRUE(model.ok()) << model.status();
    return model.ok() ? EngineLoop::Start(*std::move(model), tokenizer_, options) : nullptr;
  }

  GenerationRequest Request(std::string_view prompt, uint64_t seed) const {
    GenerationRequest request;
    request.prompt_ids = *tokenizer_->Encode(prompt);
    request.max_tokens = 60;
    request.sampling.seed = seed;
    request.sampling.temperature = 0.8f;
    request.sampling.top_p = 0.95f;
    return request;
  }

  static std::string TextOf(EngineLoop& loop, const GenerationRequest& request) {
    const auto outputs = GenerateAndWait(loop, request);
    EXPECT_TRUE(outputs.ok()) << outputs.status();
    return outputs.ok() ? outputs->front().text : "";
  }

  std::shared_ptr<const Tokenizer> tokenizer_;

 private:
  static absl::StatusOr<std::unique_ptr<Model>> Load(int64_t kv_cache_tokens,
                                                     const std::string& device,
                                                     KvCacheType kv_cache_type) {
    US_ASSIGN_OR_RETURN(std::shared_ptr<Backend> backend,
                        CreateBackend(device, BackendOptions{.num_threads = 2}));
    US_ASSIGN_OR_RETURN(std::shared_ptr<const Checkpoint> checkpoint,
                        Checkpoint::Open(SAMPLE_MODEL_DIR));
    ModelOptions options;
    options.max_step_tokens = 512;
    options.kv_cache_tokens = kv_cache_tokens;
    options.kv_cache_type = kv_cache_type;
    return LoadModel(std::move(checkpoint), std::move(backend), options);
  }
};

class RealModelCacheTest : public RealModelTest,
                           public ::testing::WithParamInterface<KvCacheType> {};

INSTANTIATE_TEST_SUITE_P(Types, RealModelCacheTest, ::testing::ValuesIn(kKvCacheTypes),
                         [](const auto& type) { return KvCacheTypeName(type.param); });

TEST_P(RealModelCacheTest, ConcurrentRequestsGiveTheTextThatEachGivesAlone) {
  const auto loop = Start(4096, {}, "cpu", GetParam());
  ASSERT_NE(loop, nullptr);
  const GenerationRequest request = Request("It was a dark night, and", 11);
  const std::string alone = TextOf(*loop, request);
  EXPECT_FALSE(alone.empty());
  EXPECT_NE(TextOf(*loop, Request("It was a dark night, and", 12)), alone);

  std::vector<std::string> texts(4);
  std::vector<std::thread> clients;
  for (size_t i = 0; i < texts.size(); ++i) {
    clients.emplace_back([&, i] { texts[i] = TextOf(*loop, request); });
  }
  // And one that is not like them, with a prompt in several blocks.
  const std::string other = TextOf(*loop, Request("She walked to the door of the old house.", 5));
  for (std::thread& client : clients) client.join();
  for (const std::string& text : texts) EXPECT_EQ(text, alone);
  EXPECT_NE(other, alone);
}

TEST_P(RealModelCacheTest, PreemptionDoesNotChangeTheText) {
  GenerationRequest request = Request("The captain said that he", 1);
  request.num_completions = 5;
  std::vector<std::vector<std::string>> texts;
  for (const int64_t kv_cache_tokens : {4096, 160}) {
    const auto loop = Start(kv_cache_tokens, {}, "cpu", GetParam());
    ASSERT_NE(loop, nullptr);
    const auto outputs = GenerateAndWait(*loop, request);
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    EXPECT_EQ(loop->stats().num_preemptions > 0, kv_cache_tokens == 160);
    EXPECT_EQ(loop->stats().kv_blocks_used, 0);
    texts.emplace_back();
    for (const GenerationOutput& output : *outputs) texts.back().push_back(output.text);
  }
  EXPECT_EQ(texts[0], texts[1]);
}

// Ids and log-probabilities to the bit, with prompts in chunks and neighbours that change.
void ExpectPrefixCacheChangesNothing(
    const std::function<std::unique_ptr<EngineLoop>(const EngineLoopOptions&)>& start,
    const std::function<GenerationRequest(std::string_view, uint64_t)>& make_request) {
  const std::string beginning =
      "It was a dark night, and the rain fell upon the roofs of the old town without an end. The "
      "captain stood at the window of the inn, and looked down on the road by which he had come. ";
  struct Answer {
    std::vector<int32_t> token_ids;
    std::vector<float> logprobs;
    bool operator==(const Answer&) const = default;
  };
  std::vector<std::vector<Answer>> answers;
  for (const bool prefix_cache : {false, true}) {
    EngineLoopOptions options;
    options.prefix_cache = prefix_cache;
    options.max_step_tokens = prefix_cache ? 19 : 512;
    const std::unique_ptr<EngineLoop> loop = start(options);
    ASSERT_NE(loop, nullptr);
    answers.emplace_back();
    std::vector<int32_t> last_ids;
    int64_t num_cached = 0;
    for (const char* const question : {"He", "She said", "He", ""}) {
      GenerationRequest request = make_request(beginning + question, 3);
      request.max_tokens = 30;
      request.sampling.num_logprobs = 0;
      request.num_completions = 2;
      // In the end, the next turn of a conversation.
      if (*question == '\0') request.prompt_ids = last_ids;
      const auto outputs = GenerateAndWait(*loop, request);
      ASSERT_TRUE(outputs.ok()) << outputs.status();
      for (const GenerationOutput& output : *outputs) {
        Answer& answer = answers.back().emplace_back();
        answer.token_ids = output.token_ids;
        for (const SampledToken& token : output.logprobs) answer.logprobs.push_back(token.logprob);
        num_cached += output.result.num_cached_prompt_tokens;
      }
      last_ids = request.prompt_ids;
      last_ids.insert(last_ids.end(), outputs->back().token_ids.begin(),
                      outputs->back().token_ids.end());
    }
    EXPECT_EQ(num_cached > 200, prefix_cache) << num_cached;
    EXPECT_EQ(loop->stats().prefix_cache_hit_tokens, num_cached);
  }
  EXPECT_EQ(answers[0], answers[1]);
}

TEST_P(RealModelCacheTest, ThePrefixCacheDoesNotChangeATextByABit) {
  ExpectPrefixCacheChangesNothing(
      [this](const EngineLoopOptions& options) { return Start(4096, options, "cpu", GetParam()); },
      [this](std::string_view prompt, uint64_t seed) { return Request(prompt, seed); });
}

TEST_F(RealModelTest, ThePrefixCacheDoesNotChangeATextByABitOnAGpu) {
  if (!CreateBackend("cuda", {}).ok()) GTEST_SKIP() << "no CUDA device, or no plug-in";
  ExpectPrefixCacheChangesNothing(
      [this](const EngineLoopOptions& options) { return Start(4096, options, "cuda"); },
      [this](std::string_view prompt, uint64_t seed) { return Request(prompt, seed); });
}

TEST_F(RealModelTest, AnUrgentRequestDoesNotChangeTheTextThatItInterrupts) {
  EngineLoopOptions options;
  options.max_running_sequences = 1;
  const auto loop = Start(4096, options);
  ASSERT_NE(loop, nullptr);
  GenerationRequest lax = Request("The captain said that he", 1);
  lax.max_tokens = 300;
  lax.priority = 10;
  const std::string alone = TextOf(*loop, lax);
  std::string interrupted;
  std::atomic<bool> has_ended = false;
  std::thread client([&] {
    interrupted = TextOf(*loop, lax);
    has_ended = true;
  });
  GenerationRequest urgent = Request("It was", 5);
  urgent.priority = -5;
  urgent.max_tokens = 5;
  while (loop->stats().num_running == 0 && !has_ended) absl::SleepFor(absl::Milliseconds(1));
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(TextOf(*loop, urgent).empty());
  client.join();
  EXPECT_EQ(interrupted, alone);
}

TEST_F(RealModelTest, ScoringAgreesWithTheLogprobsOfGeneration) {
  const auto loop = Start();
  ASSERT_NE(loop, nullptr);
  GenerationRequest request = Request("It was the best of times", 3);
  request.sampling.num_logprobs = 0;
  const auto outputs = GenerateAndWait(*loop, request);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  const GenerationOutput& output = outputs->front();

  ScoreRequest score_request;
  score_request.token_ids = request.prompt_ids;
  score_request.token_ids.insert(score_request.token_ids.end(), output.token_ids.begin(),
                                 output.token_ids.end());
  const absl::StatusOr<ScoreResult> score = ScoreAndWait(*loop, score_request);
  ASSERT_TRUE(score.ok()) << score.status();
  ASSERT_EQ(score->logprobs.size(), score_request.token_ids.size() - 1);
  const size_t first = request.prompt_ids.size() - 1;
  for (size_t i = 0; i < output.logprobs.size(); ++i) {
    EXPECT_EQ(score->logprobs[first + i].id, output.logprobs[i].id);
    EXPECT_NEAR(score->logprobs[first + i].logprob, output.logprobs[i].logprob, 1e-5);
  }
}

TEST_F(RealModelTest, TheCacheOfABurstGoesBackToTheSystemWhileOthersAreServed) {
  EngineLoopOptions options;
  options.cache_idle_time = absl::Milliseconds(50);
  const auto loop = Start(4096, options);
  ASSERT_NE(loop, nullptr);
  std::string prompt;
  for (int i = 0; i < 60; ++i) absl::StrAppend(&prompt, "The old house stood. ");
  TextOf(*loop, Request(prompt, 1));
  const int64_t of_burst = loop->memory_usage().kv_cache;
  const std::string text = TextOf(*loop, Request("The old house stood", 1));
  do {
    EXPECT_EQ(TextOf(*loop, Request("The old house stood", 1)), text);
  } while (loop->memory_usage().kv_cache > of_burst / 2);
}

TEST_F(RealModelTest, TheCacheOfAnIdleModelGoesBackToTheSystem) {
  EngineLoopOptions options;
  options.cache_idle_time = absl::Milliseconds(50);
  const auto loop = Start(4096, options);
  ASSERT_NE(loop, nullptr);
  const std::string text = TextOf(*loop, Request("The old house stood", 1));
  while (loop->memory_usage().kv_cache > 0) std::this_thread::yield();
  EXPECT_EQ(TextOf(*loop, Request("The old house stood", 1)), text);
  EXPECT_GT(text.size(), 0u);
}

}  // namespace
}  // namespace ultrasketch
