// Steps that a model refuses, and that it works on after each.
#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/base/temporary_folder.h"
#include "tests/models/tiny_model.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;

class ForwardTest : public ::testing::Test {
 protected:
  ForwardTest() {
    nlohmann::json config = TinyConfig();
    config["max_position_embeddings"] = 100;
    MakeTinyModel(config, {DType::kBF16}).Write(folder_.path());
    ModelOptions options;
    options.max_step_tokens = 64;
    options.max_step_logits = 10;
    options.kv_cache_tokens = 320;
    model_ = MustLoadModel(folder_.path(), 2, options);
    EXPECT_TRUE(model_->Forward(Good()).ok());
    expected_ = LogitsRow(*model_, 0);
  }

  std::vector<SequenceSlice> Good() const { return {{ids_, 0, blocks_, 1}}; }

  void ExpectRefused(const std::vector<SequenceSlice>& step,
                     const std::vector<std::string>& parts) {
    const absl::Status status = model_->Forward(step);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    for (const std::string& part : parts) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(part));
    }
    // No logits of an earlier step are left to be taken for this one's.
    EXPECT_EQ(model_->num_logits(), 0);
    std::vector<float> row(61);
    EXPECT_EQ(model_->CopyLogits(0, absl::MakeSpan(row)).code(),
              absl::StatusCode::kInvalidArgument);
    const absl::Status next = model_->Forward(Good());
    ASSERT_TRUE(next.ok()) << next;
    EXPECT_EQ(LogitsRow(*model_, 0), expected_);
  }

  // The step of one sequence with a change.
  void ExpectRefused(const std::function<void(SequenceSlice&)>& change,
                     const std::vector<std::string>& parts) {
    std::vector<SequenceSlice> step = Good();
    change(step[0]);
    ExpectRefused(step, parts);
    // As the second sequence of a step it is named by its number.
    step.insert(step.begin(), Good()[0]);
    ExpectRefused(step, {"sequence 1"});
  }

  TemporaryFolder folder_;
  const std::vector<int32_t> ids_ = RandomTokens(20, 61, 8);
  const std::vector<BlockId> blocks_ = {19, 4};
  std::unique_ptr<Model> model_;
  std::vector<float> expected_;
};

TEST_F(ForwardTest, RefusesAnEmptyStep) { ExpectRefused(std::vector<SequenceSlice>(), {"none"}); }

TEST_F(ForwardTest, RefusesASequenceWithoutTokens) {
  ExpectRefused([](SequenceSlice& step) { step.token_ids = {}; }, {"at least one token"});
}

TEST_F(ForwardTest, RefusesIdsOutsideTheVocabulary) {
  for (const int32_t id : {-1, 61, 1 << 30, std::numeric_limits<int32_t>::min()}) {
    std::vector<int32_t> ids = ids_;
    ids[13] = id;
    ExpectRefused([&](SequenceSlice& step) { step.token_ids = ids; },
                  {"token id", "0 to 60", std::to_string(id)});
  }
}

TEST_F(ForwardTest, RefusesMoreThanTheContext) {
  const std::vector<BlockId> many = ScatteredBlocks(0, 20);
  for (const int64_t cached : {int64_t{81}, int64_t{100}, std::numeric_limits<int64_t>::max()}) {
    ExpectRefused(
        [&](SequenceSlice& step) {
          step.num_cached = cached;
          step.blocks = many;
        },
        {"100", std::to_string(cached)});
  }
  // Up to the last position is fine.
  std::vector<SequenceSlice> step = Good();
  step[0].num_cached = 80;
  step[0].blocks = many;
  EXPECT_TRUE(model_->Forward(step).ok());
}

TEST_F(ForwardTest, RefusesANegativeNumberOfCachedTokens) {
  ExpectRefused([](SequenceSlice& step) { step.num_cached = -1; }, {"num_cached"});
  ExpectRefused([](SequenceSlice& step) { step.num_cached = std::numeric_limits<int64_t>::min(); },
                {"num_cached"});
}

TEST_F(ForwardTest, RefusesTooFewBlocks) {
  const std::vector<BlockId> one = {3};
  ExpectRefused([&](SequenceSlice& step) { step.blocks = one; }, {"2 cache blocks", "found 1"});
  ExpectRefused([&](SequenceSlice& step) { step.blocks = {}; }, {"2 cache blocks", "found 0"});
  ExpectRefused([&](SequenceSlice& step) { step.num_cached = 13; }, {"3 cache blocks", "found 2"});
}

TEST_F(ForwardTest, RefusesBlocksOutsideTheCache) {
  for (const BlockId block : {-1, 20, std::numeric_limits<BlockId>::max()}) {
    const std::vector<BlockId> blocks = {0, block};
    ExpectRefused([&](SequenceSlice& step) { step.blocks = blocks; },
                  {"cache block", "0 to 19", std::to_string(block)});
  }
}

TEST_F(ForwardTest, RefusesNumbersOfLogitsOutOfRange) {
  for (const int64_t num_logits : {int64_t{-1}, int64_t{21}, std::numeric_limits<int64_t>::max()}) {
    ExpectRefused([&](SequenceSlice& step) { step.num_logits = num_logits; },
                  {"num_logits", "0 to 20", std::to_string(num_logits)});
  }
}

TEST_F(ForwardTest, RefusesMoreTokensThanAStepHolds) {
  const std::vector<int32_t> ids = RandomTokens(65, 61, 9);
  const std::vector<BlockId> blocks = ScatteredBlocks(0, 5);
  ExpectRefused({{ids, 0, blocks, 1}}, {"64 tokens", "65"});
  std::vector<SequenceSlice> step(4, Good()[0]);
  ExpectRefused(step, {"64 tokens", "80"});
  const std::vector<SequenceSlice> full = {{absl::MakeConstSpan(ids).subspan(0, 64), 0, blocks, 1}};
  EXPECT_TRUE(model_->Forward(full).ok());
}

TEST_F(ForwardTest, RefusesMoreLogitsThanAStepHolds) {
  std::vector<SequenceSlice> step(2, Good()[0]);
  step[0].num_logits = 7;
  step[1].num_logits = 4;
  ExpectRefused(step, {"10 rows of logits", "11"});
  step[1].num_logits = 3;
  EXPECT_TRUE(model_->Forward(step).ok());
  EXPECT_EQ(model_->num_logits(), 10);
}

TEST_F(ForwardTest, TellsWhereTheTimeOfAStepWent) {
  const absl::Time begin = absl::Now();
  ASSERT_TRUE(model_->Forward(Good()).ok());
  const absl::Duration duration = absl::Now() - begin;
  const std::optional<StageDurations> stages = model_->stage_durations();
  ASSERT_TRUE(stages.has_value());
  for (const StepStage stage : {StepStage::kGemm, StepStage::kAttention, StepStage::kHead}) {
    EXPECT_GT((*stages)[stage], absl::ZeroDuration());
  }
  EXPECT_LE(stages->total(), duration);
  // Nothing is compressed; the rest is the caller's to know.
  for (const StepStage stage : {StepStage::kSketch, StepStage::kSampling, StepStage::kOther}) {
    EXPECT_EQ((*stages)[stage], absl::ZeroDuration());
  }
}

TEST_F(ForwardTest, TakesAStepWithoutLogits) {
  std::vector<SequenceSlice> step = Good();
  step[0].num_logits = 0;
  EXPECT_TRUE(model_->Forward(step).ok());
  EXPECT_EQ(model_->num_logits(), 0);
}

TEST_F(ForwardTest, RefusesRowsThatTheStepDidNotCompute) {
  std::vector<float> row(61);
  for (const int64_t index : {int64_t{-1}, int64_t{1}, std::numeric_limits<int64_t>::max()}) {
    const absl::Status status = model_->CopyLogits(index, absl::MakeSpan(row));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("1 row"));
    SampleRequest request;
    request.logits_row = index;
    SampledToken token;
    EXPECT_EQ(model_->Sample({request}, absl::MakeSpan(&token, 1)).code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(ForwardTest, SamplesRowsInAnyOrderAndRepeatedly) {
  std::vector<SequenceSlice> step = Good();
  step[0].num_logits = 5;
  ASSERT_TRUE(model_->Forward(step).ok());
  std::vector<int32_t> best;
  for (int64_t row = 0; row < 5; ++row) {
    const std::vector<float> logits = LogitsRow(*model_, row);
    best.push_back(
        static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
  }
  SamplingParams params;
  params.temperature = 0;
  std::vector<SampleRequest> requests;
  std::vector<int32_t> expected;
  for (const int64_t row : {4, 0, 0, 2, 3, 1, 4}) {
    SampleRequest request;
    request.logits_row = row;
    request.params = &params;
    requests.push_back(request);
    expected.push_back(best[static_cast<size_t>(row)]);
  }
  std::vector<SampledToken> tokens(requests.size());
  ASSERT_TRUE(model_->Sample(requests, absl::MakeSpan(tokens)).ok());
  std::vector<int32_t> found;
  for (const SampledToken& token : tokens) found.push_back(token.id);
  EXPECT_EQ(found, expected);
}

}  // namespace
}  // namespace ultrasketch
