#include "engine/bench/quality.h"

#include <atomic>
#include <cmath>
#include <filesystem>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/base/temporary_folder.h"

namespace ultrasketch {
namespace {

TEST(RoundToNearestTest, KeepsExtremesAndTheNumberOfLevels) {
  std::vector<float> weights;
  for (int i = 0; i < 3 * 100; ++i) weights.push_back(std::sin(static_cast<float>(i * i)));
  weights[5] = 2.0f;
  for (const int bits : {1, 2, 4}) {
    std::vector<float> rounded = weights;
    RoundToNearest(bits, 100, absl::MakeSpan(rounded));
    EXPECT_EQ(rounded[5], 2.0f);
    std::set<float> levels(rounded.begin(), rounded.begin() + kLandmarkGroup);
    EXPECT_LE(levels.size(), size_t{1} << bits);
    for (size_t i = 0; i < kLandmarkGroup; ++i) {
      EXPECT_LE(std::abs(rounded[i] - weights[i]), 2.0f / ((1 << bits) - 1) + 1e-6f);
    }
    // The next group has extremes of its own.
    for (size_t i = kLandmarkGroup; i < 100; ++i) EXPECT_LE(std::abs(rounded[i]), 1.001f);
  }
  std::vector<float> zeros(10, 0.0f);
  RoundToNearest(4, 10, absl::MakeSpan(zeros));
  EXPECT_EQ(zeros, std::vector<float>(10, 0.0f));
}

TEST(QualityTest, MoreBitsAreBetterAndNothingIsLeftBehind) {
  const TemporaryFolder folder;
  const auto checkpoint = Checkpoint::Open(SAMPLE_MODEL_DIR);
  ASSERT_TRUE(checkpoint.ok());
  QualityOptions options;
  options.bits = {1, 3};
  options.compress.calibration_windows = 0;
  options.evaluate.context = 64;
  options.work_folder = folder.path();
  std::vector<int32_t> tokens;
  for (int i = 0; i < 300; ++i) tokens.push_back(10 + i * i * 7 % 8000);
  double last = 0;
  options.progress = [&](std::string_view stage, double fraction) {
    EXPECT_FALSE(stage.empty());
    EXPECT_GE(fraction, last);
    EXPECT_LE(fraction, 1.0);
    last = fraction;
  };
  const auto points = MeasureQuality(*checkpoint, tokens, options);
  ASSERT_TRUE(points.ok()) << points.status();
  ASSERT_EQ(points->size(), 5u);
  EXPECT_EQ((*points)[0].codec, "dense");
  EXPECT_EQ((*points)[0].bits_per_weight_linear, 16);
  EXPECT_EQ((*points)[1].codec, "int2");
  EXPECT_EQ((*points)[1].bits_per_weight_linear, 2.25);
  EXPECT_EQ((*points)[2].codec, "int4");
  EXPECT_EQ((*points)[2].bits_per_weight_linear, 4.25);
  // Four bits are close to all of them.
  EXPECT_NEAR((*points)[2].ratio_to_dense, 1, 0.2);
  EXPECT_LE((*points)[3].bits_per_weight_linear, 1);
  EXPECT_LT((*points)[3].bytes, (*points)[4].bytes);
  EXPECT_LT((*points)[4].bytes, (*points)[0].bytes);
  EXPECT_EQ(ToJson(*points).size(), 5u);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(QualityTest, TellsWhyARateCannotBeMet) {
  const TemporaryFolder folder;
  const auto checkpoint = Checkpoint::Open(SAMPLE_MODEL_DIR);
  ASSERT_TRUE(checkpoint.ok());
  QualityOptions options;
  options.bits = {0.0001, 1};
  options.landmarks = {};
  options.compress.calibration_windows = 0;
  options.evaluate.context = 32;
  options.work_folder = folder.path();
  const std::vector<int32_t> tokens(40, 7);
  const auto points = MeasureQuality(*checkpoint, tokens, options);
  ASSERT_TRUE(points.ok()) << points.status();
  ASSERT_EQ(points->size(), 3u);
  EXPECT_THAT((*points)[1].error, testing::HasSubstr("bits"));
  const auto json = ToJson(*points);
  EXPECT_TRUE(json[1]["perplexity"].is_null());
  EXPECT_TRUE(json[1]["error"].is_string());
  EXPECT_TRUE(json[2]["error"].is_null());
  EXPECT_GT(json[2]["ratio_to_dense"], 0);
}

TEST(QualityTest, RefusesWhatThereIsNot) {
  const TemporaryFolder folder;
  const auto checkpoint = Checkpoint::Open(SAMPLE_MODEL_DIR);
  ASSERT_TRUE(checkpoint.ok());
  QualityOptions good;
  good.work_folder = folder.path();
  const std::vector<int32_t> tokens(40, 7);
  const auto expect_refused = [&](const QualityOptions& options, const std::string& part) {
    const absl::Status status = MeasureQuality(*checkpoint, tokens, options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(part));
  };
  QualityOptions options = good;
  options.codecs = {"fold", "dense"};
  expect_refused(options, "found \"dense\"");
  options = good;
  options.bits = {};
  expect_refused(options, "bits");
  options = good;
  options.bits = {-1};
  expect_refused(options, "found -1");
  options = good;
  options.landmarks = {9};
  expect_refused(options, "found 9");
  options = good;
  options.evaluate.context = 0;
  expect_refused(options, "context");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(QualityTest, StopsWhenItIsAskedTo) {
  const TemporaryFolder folder;
  const auto checkpoint = Checkpoint::Open(SAMPLE_MODEL_DIR);
  ASSERT_TRUE(checkpoint.ok());
  std::atomic<bool> cancelled = false;
  QualityOptions options;
  options.work_folder = folder.path();
  options.landmarks = {4};
  options.compress.cancelled = &cancelled;
  options.evaluate.cancelled = &cancelled;
  options.progress = [&](std::string_view stage, double) {
    if (stage.starts_with("int4")) cancelled = true;
  };
  const std::vector<int32_t> tokens(40, 7);
  EXPECT_EQ(MeasureQuality(*checkpoint, tokens, options).status().code(),
            absl::StatusCode::kCancelled);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace ultrasketch
