#include "engine/bench/kernel_bench_cpu.h"

#include <atomic>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;

KernelBenchOptions TinyKernels(const std::string& codec) {
  KernelBenchOptions options;
  options.codec = codec;
  options.shapes = {{"mlp_input", 96, 256}, {"mlp_output", 64, 130}};
  options.token_counts = {1, 5};
  options.seconds = 0;
  return options;
}

class CpuKernelBenchTest : public ::testing::TestWithParam<const char*> {};

TEST_P(CpuKernelBenchTest, TimesEveryShapeAtEveryNumberOfTokensBesideBf16) {
  KernelBenchOptions options = TinyKernels(GetParam());
  double done = 0;
  options.progress = [&done](double fraction) { done = fraction; };
  const auto result = MeasureCpuKernels(options, 2);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->num_threads, 2);
  EXPECT_GT(result->bytes_per_second, 0);
  ASSERT_EQ(result->measurements.size(), 4u);
  EXPECT_EQ(result->measurements[1].site, "mlp_input");
  EXPECT_EQ(result->measurements[1].num_tokens, 5);
  EXPECT_EQ(result->measurements[2].site, "mlp_output");
  for (const CpuKernelMeasurement& measurement : result->measurements) {
    EXPECT_GT(measurement.least_microseconds, 0);
    EXPECT_GE(measurement.microseconds, measurement.least_microseconds);
    EXPECT_GT(measurement.least_dense_microseconds, 0);
    EXPECT_GE(measurement.dense_microseconds, measurement.least_dense_microseconds);
    EXPECT_GT(measurement.bytes, 0);
    EXPECT_LT(measurement.bytes, 2 * 96 * 256);
  }
  EXPECT_NEAR(done, 1.0, 1e-9);
}

INSTANTIATE_TEST_SUITE_P(Codecs, CpuKernelBenchTest,
                         ::testing::Values("fold", "absmaxmin", "int8", "int4"),
                         [](const auto& test) { return std::string(test.param); });

TEST(CpuKernelBenchOptionsTest, RefusesWhatItDoesNotKnow) {
  const auto result = MeasureCpuKernels(TinyKernels("dense"), 1);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("found \"dense\""));
  EXPECT_EQ(PresetHeadShape("no such").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(CpuKernelBenchOptionsTest, StopsWhenItIsCancelled) {
  const std::atomic<bool> cancelled = true;
  KernelBenchOptions options = TinyKernels("fold");
  options.cancelled = &cancelled;
  EXPECT_EQ(MeasureCpuKernels(options, 1).status().code(), absl::StatusCode::kCancelled);
}

TEST(CpuKernelBenchOptionsTest, KnowsTheHeadsOfPresets) {
  const auto head = PresetHeadShape("llama-3.2-1b");
  ASSERT_TRUE(head.ok()) << head.status();
  EXPECT_EQ(head->rows, 128256);
  EXPECT_EQ(head->cols, 2048);
}

}  // namespace
}  // namespace ultrasketch
