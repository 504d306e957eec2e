// The folding sketch's CPU kernels against its decode.
#include <cmath>

#include "gtest/gtest.h"

#include "engine/base/thread_pool.h"
#include "engine/codecs/fold/fold_cpu_linear.h"
#include "tests/codecs/fold_examples.h"

namespace ultrasketch {
namespace {

using fold_internal::AvailableFoldKernels;
using fold_internal::FoldKernels;

class FoldCpuTest : public testing::TestWithParam<const FoldKernels*> {
 protected:
  static std::vector<float> Prepare(const FoldCpuLinear& linear, const std::vector<float>& x,
                                    int64_t num_tokens) {
    const int64_t width = linear.prepared_width();
    std::vector<float> prepared(static_cast<size_t>(num_tokens * width));
    for (int64_t token = 0; token < num_tokens; ++token) {
      linear.PrepareInput(x.data() + token * linear.cols(), prepared.data() + token * width);
    }
    return prepared;
  }

  ThreadPool pool_{3};
};

struct Shape {
  int64_t rows;
  int64_t cols;
  int64_t buckets;
};

constexpr Shape kShapes[] = {{1, 3, 2},      {1, 1, 1},     {15, 64, 32},    {16, 65, 33},
                             {17, 100, 31},  {63, 40, 40},  {64, 128, 64},   {65, 129, 43},
                             {80, 384, 176}, {113, 77, 7},  {640, 384, 192}, {200, 1152, 530},
                             {33, 50, 51},   {70, 96, 192}, {5, 10, 77}};

TEST_P(FoldCpuTest, MultipliesAsDecoded) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(testing::Message() << shape.rows << " x " << shape.cols << ", " << shape.buckets);
    const auto fold = ExampleFold(shape.rows, shape.cols, shape.buckets);
    const FoldCpuLinear linear(*fold, GetParam());
    ASSERT_EQ(linear.rows(), shape.rows);
    ASSERT_EQ(linear.cols(), shape.cols);
    std::vector<float> decoded(static_cast<size_t>(shape.rows * shape.cols));
    fold->DecodeRows(0, shape.rows, decoded.data());
    for (const int64_t num_tokens : {1, 2, 3, 4, 5, 11}) {
      const std::vector<float> x = RandomFloats(num_tokens * shape.cols, 3);
      const std::vector<float> prepared = Prepare(linear, x, num_tokens);
      std::vector<float> y(static_cast<size_t>(num_tokens * shape.rows), 7.0f);
      linear.Multiply(prepared.data(), num_tokens, false, y.data(), pool_);
      std::vector<float> added(y.size(), 1.0f);
      linear.Multiply(prepared.data(), num_tokens, true, added.data(), pool_);
      for (int64_t token = 0; token < num_tokens; ++token) {
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
          const auto index = static_cast<size_t>(token * shape.rows + row);
          ASSERT_NEAR(y[index], expected, 1e-6 * magnitude + 1e-6) << token << ", " << row;
          ASSERT_NEAR(added[index], expected + 1, 1e-6 * magnitude + 1e-6) << token << ", " << row;
        }
      }
    }
  }
}

TEST_P(FoldCpuTest, ATokensResultDependsNeitherOnTheBatchNorOnTheThreads) {
  const auto fold = ExampleFold(300, 257, 121);
  const FoldCpuLinear linear(*fold, GetParam());
  constexpr int64_t kTokens = 13;
  const std::vector<float> prepared = Prepare(linear, RandomFloats(kTokens * 257, 4), kTokens);
  std::vector<float> alone(static_cast<size_t>(kTokens * 300));
  ThreadPool one_thread(1);
  for (int64_t token = 0; token < kTokens; ++token) {
    linear.Multiply(prepared.data() + token * linear.prepared_width(), 1, false,
                    alone.data() + token * 300, one_thread);
  }
  for (const int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads);
    for (const int64_t num_tokens : {int64_t{2}, int64_t{7}, kTokens}) {
      std::vector<float> together(static_cast<size_t>(num_tokens * 300));
      linear.Multiply(prepared.data(), num_tokens, false, together.data(), pool);
      EXPECT_TRUE(std::equal(together.begin(), together.end(), alone.begin()))
          << num_threads << " threads, " << num_tokens << " tokens";
    }
  }
}

TEST_P(FoldCpuTest, PreparesInPlace) {
  const auto fold = ExampleFold(5, 64, 64);
  const FoldCpuLinear linear(*fold, GetParam());
  ASSERT_EQ(linear.prepared_width(), linear.cols());
  const std::vector<float> x = RandomFloats(64, 6);
  std::vector<float> in_place = x;
  linear.PrepareInput(in_place.data(), in_place.data());
  EXPECT_EQ(in_place, Prepare(linear, x, 1));
}

INSTANTIATE_TEST_SUITE_P(EveryInstructionSet, FoldCpuTest,
                         testing::ValuesIn(AvailableFoldKernels()),
                         [](const testing::TestParamInfo<const FoldKernels*>& test) {
                           return test.param->name;
                         });

}  // namespace
}  // namespace ultrasketch
