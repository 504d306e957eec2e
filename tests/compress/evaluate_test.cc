#include "engine/compress/evaluate.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/backends/backend.h"
#include "engine/backends/sampling/sampling.h"
#include "engine/base/file.h"
#include "engine/format/checkpoint.h"

namespace ultrasketch {
namespace {

constexpr const char* kText =
    "It was a bright morning in the spring of the year, and the road to the village was still wet. "
    "She had walked it a hundred times, with her basket on her arm, and never met anybody but the "
    "old gardener; yet today a carriage stood before the gate.";

class EvaluateTest : public testing::Test {
 protected:
  void SetUp() override {
    auto checkpoint = Checkpoint::Open(SAMPLE_MODEL_DIR);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *checkpoint;
    BackendOptions backend_options;
    backend_options.num_threads = 2;
    auto backend = CreateBackend("cpu", backend_options);
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *backend;
    auto tokenizer = Tokenizer::Load(checkpoint_->tokenizer_path());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
    EncodeOptions options;
    options.add_special_tokens = false;
    token_ids_ = *tokenizer_->Encode(kText, options);
    ASSERT_GT(token_ids_.size(), 40u);
  }

  std::unique_ptr<Model> Load(const ModelOptions& options) {
    auto model = LoadModel(checkpoint_, backend_, options);
    EXPECT_TRUE(model.ok()) << model.status();
    return model.ok() ? *std::move(model) : nullptr;
  }

  // One token a step, one window after the other.
  double ExpectedNll(int64_t context, int64_t& num_tokens) {
    ModelOptions options;
    options.max_step_tokens = 1;
    options.max_step_logits = 1;
    options.kv_cache_tokens = 1024;
    const auto model = Load(options);
    std::vector<BlockId> blocks(static_cast<size_t>(1024 / options.block_size));
    for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<BlockId>(i);
    std::vector<float> logits(static_cast<size_t>(model->config().vocab_size));
    double sum = 0;
    num_tokens = 0;
    const auto size = static_cast<int64_t>(token_ids_.size());
    for (int64_t first = 0; first < size; first += context) {
      for (int64_t i = 0; i < context && first + i + 1 < size; ++i) {
        const SequenceSlice step = {
            absl::MakeConstSpan(token_ids_).subspan(static_cast<size_t>(first + i), 1), i, blocks,
            1};
        EXPECT_TRUE(model->Forward({step}).ok());
        EXPECT_TRUE(model->CopyLogits(0, absl::MakeSpan(logits)).ok());
        sum -= LogProbability(logits, token_ids_[static_cast<size_t>(first + i + 1)]);
        ++num_tokens;
      }
    }
    return sum / static_cast<double>(num_tokens);
  }

  std::shared_ptr<const Checkpoint> checkpoint_;
  std::shared_ptr<Backend> backend_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<int32_t> token_ids_;
};

TEST_F(EvaluateTest, IsTheMeanOverWindowsWhateverTheBatching) {
  for (const int64_t context : {1, 7, 16, 512}) {
    int64_t num_tokens = 0;
    const double expected = ExpectedNll(context, num_tokens);
    EXPECT_EQ(num_tokens, static_cast<int64_t>(token_ids_.size()) - 1);
    EvaluateOptions options;
    options.context = context;
    ModelOptions few_tokens = EvaluationModelOptions(checkpoint_->config(), context);
    few_tokens.max_step_tokens = 5;
    few_tokens.max_step_logits = 3;
    ModelOptions small_cache = EvaluationModelOptions(checkpoint_->config(), context);
    small_cache.kv_cache_tokens = 128;
    for (const ModelOptions& model_options :
         {EvaluationModelOptions(checkpoint_->config(), context), few_tokens, small_cache}) {
      const auto model = Load(model_options);
      ASSERT_NE(model, nullptr);
      const auto evaluation = EvaluateText(*model, *tokenizer_, kText, options);
      ASSERT_TRUE(evaluation.ok()) << evaluation.status();
      EXPECT_EQ(evaluation->tokens, num_tokens);
      EXPECT_NEAR(evaluation->nll, expected, 1e-4);
      EXPECT_NEAR(evaluation->perplexity, std::exp(expected), 1e-2);
      EXPECT_GT(evaluation->tokens_per_second, 0);
    }
  }
}

TEST_F(EvaluateTest, SaysWhatWasMostLikelyAndHowOftenItCame) {
  EvaluateOptions options;
  options.context = 16;
  std::vector<int32_t> most_likely;
  options.most_likely = &most_likely;
  ModelOptions model_options = EvaluationModelOptions(checkpoint_->config(), options.context);
  model_options.max_step_tokens = 5;
  model_options.max_step_logits = 3;
  const auto evaluation = EvaluateText(*Load(model_options), *tokenizer_, kText, options);
  ASSERT_TRUE(evaluation.ok()) << evaluation.status();
  ASSERT_EQ(most_likely.size(), token_ids_.size() - 1);
  int64_t num_right = 0;
  for (size_t i = 0; i < most_likely.size(); ++i) {
    if (most_likely[i] == token_ids_[i + 1]) ++num_right;
  }
  EXPECT_GT(num_right, 0);
  EXPECT_DOUBLE_EQ(evaluation->accuracy,
                   static_cast<double>(num_right) / static_cast<double>(most_likely.size()));

  // The first of a window follows from its first token alone.
  const auto model = Load(model_options);
  const std::vector<BlockId> blocks = {0};
  ASSERT_TRUE(
      model->Forward({{absl::MakeConstSpan(token_ids_).subspan(16, 1), 0, blocks, 1}}).ok());
  std::vector<float> logits(static_cast<size_t>(model->config().vocab_size));
  ASSERT_TRUE(model->CopyLogits(0, absl::MakeSpan(logits)).ok());
  EXPECT_EQ(most_likely[16], std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// As the text of a request does, the text begins with what the template adds, unless told
// otherwise.
TEST_F(EvaluateTest, TheTextBeginsWithTheTemplatesTokens) {
  nlohmann::json document = nlohmann::json::parse(*ReadFile(checkpoint_->tokenizer_path()));
  document["post_processor"] = nlohmann::json::parse(R"({
      "type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                 {"Sequence": {"id": "A", "type_id": 0}}],
      "pair": [],
      "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0],
                                           "tokens": ["<|endoftext|>"]}}})");
  const auto tokenizer = Tokenizer::FromJson(document, "tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto model = Load(EvaluationModelOptions(checkpoint_->config(), 512));
  ASSERT_NE(model, nullptr);
  std::vector<int32_t> with = {0};
  with.insert(with.end(), token_ids_.begin(), token_ids_.end());
  EvaluateOptions options;
  EXPECT_EQ(EvaluateText(*model, **tokenizer, kText, options)->nll,
            EvaluateTokens(*model, with, options)->nll);
  options.add_special_tokens = false;
  EXPECT_EQ(EvaluateText(*model, **tokenizer, kText, options)->nll,
            EvaluateTokens(*model, token_ids_, options)->nll);
}

TEST_F(EvaluateTest, NamesThePieceThatTheModelHasNoEmbeddingFor) {
  const int32_t id = token_ids_.back();
  const absl::Status status = EncodeForEvaluation(*tokenizer_, id, kText, true).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::StartsWith("text: "));
}

TEST_F(EvaluateTest, LooksAtTheFirstTokensOnlyWhenToldTo) {
  const auto model = Load(EvaluationModelOptions(checkpoint_->config(), 8));
  ASSERT_NE(model, nullptr);
  EvaluateOptions options;
  options.context = 8;
  options.max_tokens = 20;
  int64_t last_done = 0;
  options.progress = [&](const EvaluateProgress& progress) {
    EXPECT_GT(progress.tokens_done, last_done);
    EXPECT_EQ(progress.tokens_total, 19);
    last_done = progress.tokens_done;
  };
  const auto limited = EvaluateTokens(*model, token_ids_, options);
  ASSERT_TRUE(limited.ok()) << limited.status();
  EXPECT_EQ(limited->tokens, 19);
  EXPECT_EQ(last_done, 19);
  options.max_tokens = 0;
  options.progress = nullptr;
  const auto cut = EvaluateTokens(*model, absl::MakeConstSpan(token_ids_).first(20), options);
  ASSERT_TRUE(cut.ok());
  EXPECT_EQ(cut->nll, limited->nll);
}

TEST_F(EvaluateTest, RefusesWhatItCannotEvaluate) {
  ModelOptions model_options;
  model_options.kv_cache_tokens = 32;
  const auto model = Load(model_options);
  ASSERT_NE(model, nullptr);
  EvaluateOptions options;
  options.context = 16;
  const auto code = [&](absl::Span<const int32_t> token_ids) {
    return EvaluateTokens(*model, token_ids, options).status().code();
  };
  EXPECT_EQ(code({}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({1}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({1, -1}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({1, checkpoint_->config().vocab_size}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(EvaluateText(*model, *tokenizer_, "\xff\xfe text", options).status().code(),
            absl::StatusCode::kInvalidArgument);
  options.context = 0;
  EXPECT_EQ(code(token_ids_), absl::StatusCode::kInvalidArgument);
  options.context = checkpoint_->config().max_position_embeddings + 1;
  EXPECT_EQ(code(token_ids_), absl::StatusCode::kInvalidArgument);
  options.context = 512;
  EXPECT_EQ(code(token_ids_), absl::StatusCode::kResourceExhausted);

  std::atomic<bool> cancelled = true;
  options.context = 16;
  options.cancelled = &cancelled;
  EXPECT_EQ(code(token_ids_), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace ultrasketch
