// The folding sketch's CPU kernels against its decode.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "gtest/gtest.h"

#include "engine/base/instruction_set.h"
#include "engine/base/thread_pool.h"
#include "engine/codecs/fold/fold_cpu_linear.h"
#include "tests/codecs/fold_examples.h"

namespace ultrasketch {
namespace {

using fold_internal::FindFoldKernels;
using fold_internal::FoldKernels;
using fold_internal::GetFoldKernels;
using fold_internal::kMaxFoldInteger;

std::vector<float> Prepare(const FoldCpuLinear& linear, const std::vector<float>& x) {
  const int64_t width = linear.prepared_width();
  const int64_t num_tokens = static_cast<int64_t>(x.size()) / linear.cols();
  std::vector<float> prepared(static_cast<size_t>(num_tokens * width));
  for (int64_t token = 0; token < num_tokens; ++token) {
    linear.PrepareInput(x.data() + token * linear.cols(), prepared.data() + token * width);
  }
  return prepared;
}

std::vector<float> Product(const FoldCpuLinear& linear, const std::vector<float>& x,
                           int num_threads) {
  const int64_t num_tokens = static_cast<int64_t>(x.size()) / linear.cols();
  std::vector<float> y(static_cast<size_t>(num_tokens * linear.rows()), 7.0f);
  ThreadPool pool(num_threads);
  linear.Multiply(Prepare(linear, x).data(), num_tokens, false, y.data(), pool);
  return y;
}

// Bit by bit, so that a NaN is equal to itself.
void ExpectSameBits(const std::vector<float>& found, const std::vector<float>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)), 0);
}

class FoldCpuTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (FindFoldKernels(GetParam()) == nullptr) {
      GTEST_SKIP() << "this processor has no " << GetParam();
    }
  }
  const FoldKernels& kernels() const { return *FindFoldKernels(GetParam()); }

  ThreadPool pool_{3};
};

struct Shape {
  int64_t rows;
  int64_t cols;
  int64_t buckets;
};

// Rows around tiles of 64, buckets around bytes and around what is summed at once (2048 for one
// token, 512 for several).
constexpr Shape kShapes[] = {{1, 3, 2},        {1, 1, 1},       {15, 64, 32},    {31, 65, 33},
                             {32, 100, 31},    {33, 40, 40},    {63, 128, 64},   {64, 129, 43},
                             {65, 384, 176},   {113, 77, 7},    {640, 384, 192}, {200, 1152, 530},
                             {33, 50, 51},     {70, 96, 192},   {5, 10, 77},     {130, 1024, 512},
                             {66, 4100, 2050}, {3, 2048, 2048}, {20, 1030, 4119}};

TEST_P(FoldCpuTest, MultipliesAsDecoded) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(testing::Message() << shape.rows << " x " << shape.cols << ", " << shape.buckets);
    const auto fold = ExampleFold(shape.rows, shape.cols, shape.buckets);
    const FoldCpuLinear linear(*fold, kernels());
    ASSERT_EQ(linear.rows(), shape.rows);
    ASSERT_EQ(linear.cols(), shape.cols);
    std::vector<float> decoded(static_cast<size_t>(shape.rows * shape.cols));
    fold->DecodeRows(0, shape.rows, decoded.data());
    const std::vector<float> scales = fold->Scales();
    for (const int64_t num_tokens : {1, 2, 3, 4, 5, 11}) {
      const std::vector<float> x = RandomFloats(num_tokens * shape.cols, 3);
      const std::vector<float> prepared = Prepare(linear, x);
      std::vector<float> y(static_cast<size_t>(num_tokens * shape.rows), 7.0f);
      linear.Multiply(prepared.data(), num_tokens, false, y.data(), pool_);
      std::vector<float> added(y.size(), 1.0f);
      linear.Multiply(prepared.data(), num_tokens, true, added.data(), pool_);
      for (int64_t token = 0; token < num_tokens; ++token) {
        // A bucket is rounded to the nearest of 4095 steps on either side of 0.
        std::vector<float> sketch(static_cast<size_t>(shape.buckets));
        fold->layout().Fold(x.data() + token * shape.cols, sketch.data());
        double largest = 0;
        for (const float bucket : sketch) largest = std::max(largest, std::abs(double{bucket}));
        const double half_step = largest / kMaxFoldInteger / 2;
        for (int64_t row = 0; row < shape.rows; ++row) {
          double expected = 0;
          double magnitude = 0;
          for (int64_t column = 0; column < shape.cols; ++column) {
            const double term =
                static_cast<double>(decoded[static_cast<size_t>(row * shape.cols + column)]) *
                x[static_cast<size_t>(token * shape.cols + column)];
            expected += term;
            magnitude += std::abs(term);
          }
          // Roundings of independent signs: six standard deviations of their sum, and all of it
          // where there are few.
          const auto buckets = static_cast<double>(shape.buckets);
          const double error = double{scales[static_cast<size_t>(row)]} * half_step *
                               std::min(buckets, 6 * std::sqrt(buckets / 3));
          const double tolerance = error + 1e-6 * magnitude + 1e-6;
          const auto index = static_cast<size_t>(token * shape.rows + row);
          ASSERT_NEAR(y[index], expected, tolerance) << token << ", " << row;
          ASSERT_EQ(added[index], 1.0f + y[index]) << token << ", " << row;
        }
      }
    }
  }
}

// Sketches of integers up to the largest are multiplied without any rounding.
TEST_P(FoldCpuTest, SumsIntegersExactly) {
  for (const Shape& shape : kShapes) {
    if (shape.cols != shape.buckets) continue;
    const LinearSite site = ExampleSite(shape.rows, shape.cols);
    const auto fold = FoldLinear::FromParts(
        site, FoldLayout(42, site.name, EvenFoldClasses(shape.cols, shape.buckets), {}),
        std::vector<uint8_t>(static_cast<size_t>(shape.rows * ((shape.buckets + 7) / 8)),
                             shape.buckets % 8 == 0 ? 0xb5 : 0x01),
        std::vector<float>(static_cast<size_t>(shape.rows), 0.5f));
    std::vector<float> decoded(static_cast<size_t>(shape.rows * shape.cols));
    fold->DecodeRows(0, shape.rows, decoded.data());
    for (const int64_t num_tokens : {1, 3}) {
      std::vector<float> x(static_cast<size_t>(num_tokens * shape.cols));
      for (size_t i = 0; i < x.size(); ++i) {
        // All as large as can be, of either sign, in every second token: what lanes must hold.
        const auto integer = static_cast<int>(RandomWord(8, 1, i) % 8191) - 4095;
        const bool extreme = static_cast<int64_t>(i) / shape.cols % 2 == 0;
        x[i] = static_cast<float>(extreme ? (integer < 0 ? -4095 : 4095) : integer);
      }
      for (int64_t token = 0; token < num_tokens; ++token) {
        x[static_cast<size_t>(token * shape.cols)] = 4095.0f;
      }
      const std::vector<float> y = Product(FoldCpuLinear(*fold, kernels()), x, 2);
      for (int64_t token = 0; token < num_tokens; ++token) {
        for (int64_t row = 0; row < shape.rows; ++row) {
          double expected = 0;
          for (int64_t column = 0; column < shape.cols; ++column) {
            expected +=
                static_cast<double>(decoded[static_cast<size_t>(row * shape.cols + column)]) *
                x[static_cast<size_t>(token * shape.cols + column)];
          }
          ASSERT_EQ(y[static_cast<size_t>(token * shape.rows + row)], expected)
              << shape.rows << " x " << shape.cols << ", " << token << ", " << row;
        }
      }
    }
  }
}

TEST_P(FoldCpuTest, GivesTheSameBitsAsThePortableKernels) {
  for (const Shape& shape : kShapes) {
    const auto fold = ExampleFold(shape.rows, shape.cols, shape.buckets);
    for (const int64_t num_tokens : {1, 2, 7}) {
      std::vector<float> x = RandomFloats(num_tokens * shape.cols, 9);
      x[0] *= 1e4f;
      ExpectSameBits(Product(FoldCpuLinear(*fold, kernels()), x, 1),
                     Product(FoldCpuLinear(*fold, *FindFoldKernels("portable")), x, 1));
    }
  }
}

TEST_P(FoldCpuTest, ATokensResultDependsNeitherOnTheBatchNorOnTheThreads) {
  for (const Shape& shape : {Shape{300, 257, 121}, Shape{70, 5000, 4100}}) {
    const auto fold = ExampleFold(shape.rows, shape.cols, shape.buckets);
    const FoldCpuLinear linear(*fold, kernels());
    constexpr int64_t kTokens = 41;
    const std::vector<float> prepared = Prepare(linear, RandomFloats(kTokens * shape.cols, 4));
    std::vector<float> alone(static_cast<size_t>(kTokens * shape.rows));
    ThreadPool one_thread(1);
    for (int64_t token = 0; token < kTokens; ++token) {
      linear.Multiply(prepared.data() + token * linear.prepared_width(), 1, false,
                      alone.data() + token * shape.rows, one_thread);
    }
    for (const int num_threads : {1, 2, 5}) {
      ThreadPool pool(num_threads);
      for (const int64_t num_tokens : {int64_t{2}, int64_t{7}, kTokens}) {
        std::vector<float> together(static_cast<size_t>(num_tokens * shape.rows));
        linear.Multiply(prepared.data(), num_tokens, false, together.data(), pool);
        EXPECT_TRUE(std::equal(together.begin(), together.end(), alone.begin()))
            << num_threads << " threads, " << num_tokens << " tokens";
      }
    }
  }
}

TEST_P(FoldCpuTest, RoundsToTheNearestIntegerAndTiesToEven) {
  const std::vector<float> z = {4095.0f, 0.5f, 1.5f, -0.5f, -2.5f, 2.4f, -3.6f, 0.0f};
  std::vector<int16_t> q(16, 7);
  const RoundedInput input = kernels().round(z.data(), 8, 16, kMaxFoldInteger, q.data());
  EXPECT_EQ(q, (std::vector<int16_t>{4095, 0, 2, 0, -2, 2, -4, 0, 0, 0, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(input.scale, 1.0f);
  EXPECT_EQ(input.total, 4095 + 2 + 2 + 2 + 4);
}

TEST_P(FoldCpuTest, RoundsSketchesOfAnyMagnitude) {
  for (const float largest : {0x1p-100f, 1e-20f, 1.0f, 3e38f}) {
    const std::vector<float> z = {largest / 3, -largest, 0.0f};
    std::vector<int16_t> q(8);
    const RoundedInput input = kernels().round(z.data(), 3, 8, kMaxFoldInteger, q.data());
    EXPECT_EQ(q, (std::vector<int16_t>{1365, -4095, 0, 0, 0, 0, 0, 0})) << largest;
    EXPECT_FLOAT_EQ(input.scale * 4095, largest);
  }
  const std::vector<float> nearly_zero = {0x1p-101f, -0x1p-149f};
  std::vector<int16_t> q(8, 7);
  const RoundedInput input = kernels().round(nearly_zero.data(), 2, 8, kMaxFoldInteger, q.data());
  EXPECT_EQ(q, std::vector<int16_t>(8, 0));
  EXPECT_EQ(input.scale, 0.0f);
}

TEST_P(FoldCpuTest, WhatIsNotFiniteMakesItsTokenAloneNaN) {
  const auto fold = ExampleFold(70, 40, 20);
  const FoldCpuLinear linear(*fold, kernels());
  const std::vector<float> x = RandomFloats(3 * 40, 5);
  const std::vector<float> expected = Product(linear, x, 1);
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    std::vector<float> changed = x;
    changed[40 + 17] = bad;
    const std::vector<float> y = Product(linear, changed, 1);
    for (size_t i = 0; i < y.size(); ++i) {
      if (i / 70 == 1) {
        EXPECT_TRUE(std::isnan(y[i])) << i;
      } else {
        EXPECT_EQ(y[i], expected[i]) << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryInstructionSet, FoldCpuTest,
                         testing::Values("avx512", "avx2", "portable"),
                         [](const testing::TestParamInfo<const char*>& test) {
                           return std::string(test.param);
                         });

TEST(FoldKernelsChoiceTest, AreThoseOfTheInstructionSet) {
  EXPECT_EQ(&GetFoldKernels(), FindFoldKernels(InstructionSet()));
  EXPECT_STREQ(GetFoldKernels().name, InstructionSet());
  EXPECT_EQ(FindFoldKernels("sse9"), nullptr);
}

}  // namespace
}  // namespace ultrasketch
