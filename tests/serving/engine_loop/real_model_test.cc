// The engine loop on a real checkpoint with its own tokenizer and the CPU backend.

#include <cmath>
#include <memory>
#include <string>
#include <thread>
#include <vector>

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
  std::unique_ptr<EngineLoop> Start(int64_t kv_cache_tokens = 4096) {
    absl::StatusOr<std::unique_ptr<Model>> model = Load(kv_cache_tokens);
    EXPECT_TRUE(model.ok()) << model.status();
    return model.ok() ? EngineLoop::Start(*std::move(model), tokenizer_, {}) : nullptr;
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
  static absl::StatusOr<std::unique_ptr<Model>> Load(int64_t kv_cache_tokens) {
    US_ASSIGN_OR_RETURN(std::shared_ptr<Backend> backend,
                        CreateBackend("cpu", BackendOptions{.num_threads = 2}));
    US_ASSIGN_OR_RETURN(std::shared_ptr<const Checkpoint> checkpoint,
                        Checkpoint::Open(SAMPLE_MODEL_DIR));
    ModelOptions options;
    options.max_step_tokens = 512;
    options.kv_cache_tokens = kv_cache_tokens;
    return LoadModel(std::move(checkpoint), std::move(backend), options);
  }
};

TEST_F(RealModelTest, ConcurrentRequestsGiveTheTextThatEachGivesAlone) {
  const auto loop = Start();
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

TEST_F(RealModelTest, PreemptionDoesNotChangeTheText) {
  GenerationRequest request = Request("The captain said that he", 1);
  request.num_completions = 5;
  std::vector<std::vector<std::string>> texts;
  for (const int64_t kv_cache_tokens : {4096, 160}) {
    const auto loop = Start(kv_cache_tokens);
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

}  // namespace
}  // namespace ultrasketch
