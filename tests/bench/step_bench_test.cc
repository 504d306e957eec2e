#include "engine/bench/step_bench.h"

#include <atomic>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

StepBenchOptions TinySteps() {
  StepBenchOptions options;
  options.device = "cpu";
  options.preset = "tiny";
  options.num_layers = 2;
  options.seconds = 0;
  options.shapes = StepShapes({3}, 41, 20);
  return options;
}

class StepBenchTest
    : public ::testing::TestWithParam<std::tuple<std::string /*codec*/, std::string /*table*/>> {};

TEST_P(StepBenchTest, TimesTheStepsOfBothModels) {
  StepBenchOptions options = TinySteps();
  std::tie(options.codec, options.table) = GetParam();
  double done = 0;
  options.progress = [&done](double fraction) { done = fraction; };
  const auto result = MeasureSteps(options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->num_layers, 2);
  EXPECT_LT(result->weight_bytes, result->dense_weight_bytes);
  ASSERT_EQ(result->measurements.size(), 2u);
  for (const StepMeasurement& step : result->measurements) {
    EXPECT_GT(step.seconds, 0) << step.shape.name;
    EXPECT_GT(step.dense_seconds, 0) << step.shape.name;
    EXPECT_EQ(step.dense_cublas_seconds, 0) << step.shape.name;
  }
  EXPECT_DOUBLE_EQ(done, 1.0);
}

INSTANTIATE_TEST_SUITE_P(Models, StepBenchTest,
                         ::testing::Combine(::testing::Values("fold", "absmaxmin"),
                                            ::testing::Values("int8", "int4", "dense")),
                         [](const auto& test) {
                           return std::get<0>(test.param) + "_" + std::get<1>(test.param);
                         });

TEST(StepBenchOptionsTest, ShapesHaveTheContextAndThePromptThatWereAskedFor) {
  const std::vector<StepShape> shapes = StepShapes({2, 64}, 1, 300);
  ASSERT_EQ(shapes.size(), 3u);
  EXPECT_EQ(shapes[0].name, "decode_2");
  EXPECT_EQ(shapes[0].batch, 2);
  EXPECT_EQ(shapes[0].num_cached, 0);
  EXPECT_EQ(shapes[0].num_new, 1);
  EXPECT_EQ(shapes[1].name, "decode_64");
  EXPECT_EQ(shapes[2].name, "prefill_300");
  EXPECT_EQ(shapes[2].batch, 1);
  EXPECT_EQ(shapes[2].num_new, 300);
  EXPECT_EQ(StepShapes({1}, 512, 0).size(), 1u);
}

TEST(StepBenchOptionsTest, UnknownNamesAreRefused) {
  for (std::string StepBenchOptions::*field :
       {&StepBenchOptions::codec, &StepBenchOptions::table, &StepBenchOptions::preset}) {
    StepBenchOptions options = TinySteps();
    options.*field = "other";
    const auto result = MeasureSteps(options);
    EXPECT_TRUE(absl::IsInvalidArgument(result.status())) << result.status();
    EXPECT_THAT(result.status().message(), ::testing::HasSubstr("other"));
  }
}

TEST(StepBenchOptionsTest, StopsWhenItIsCancelled) {
  StepBenchOptions options = TinySteps();
  const std::atomic<bool> cancelled = true;
  options.cancelled = &cancelled;
  EXPECT_TRUE(absl::IsCancelled(MeasureSteps(options).status()));
}

}  // namespace
}  // namespace ultrasketch
