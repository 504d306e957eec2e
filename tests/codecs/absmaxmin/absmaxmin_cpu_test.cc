// The AbsMaxMin sketch's CPU kernels against its decode.
#include <algorithm>
#include <cmath>
#include <utility>

#include "gtest/gtest.h"

#include "engine/base/thread_pool.h"
#include "engine/codecs/absmaxmin/absmaxmin_cpu_linear.h"
#include "tests/codecs/absmaxmin/absmaxmin_examples.h"

namespace ultrasketch {
namespace {

using absmaxmin_internal::AbsMaxMinKernels;
using absmaxmin_internal::FindAbsMaxMinKernels;

std::vector<const char*> AvailableNames() {
  std::vector<const char*> names;
  for (const char* name : {"avx512", "avx2", "portable"}) {
    if (FindAbsMaxMinKernels(name) != nullptr) names.push_back(name);
  }
  return names;
}

class AbsMaxMinCpuTest : public testing::TestWithParam<const char*> {
 protected:
  static std::vector<float> Prepare(const AbsMaxMinCpuLinear& linear, const std::vector<float>& x,
                                    int64_t num_tokens) {
    const int64_t width = linear.prepared_width();
    std::vector<float> prepared(static_cast<size_t>(num_tokens * width));
    for (int64_t token = 0; token < num_tokens; ++token) {
      linear.PrepareInput(x.data() + token * linear.cols(), prepared.data() + token * width);
    }
    return prepared;
  }

  const AbsMaxMinKernels& kernels() const { return *FindAbsMaxMinKernels(GetParam()); }

  ThreadPool pool_{3};
};

struct Shape {
  int64_t rows;
  int64_t cols;
  std::vector<AbsMaxMinClass> classes;
};

std::vector<Shape> Shapes() {
  std::vector<Shape> shapes = {
      {1, 1, {{1, 1, 1, 2, 0}}},
      {1, 3, {{3, 2, 2, 3, 0}}},
      {31, 64, {{64, 9, 3, 2, 0}}},
      {32, 65, {{65, 65, 1, 8, 0}}},
      {33, 100, {{30, 30, 1, 4, 2}, {70, 10, 3, 2, 0}}},
      {65, 300, {{300, 40, 3, 5, 0}}},
      {70, 257, {{1, 1, 1, 7, 15}, {255, 1, 8, 6, 3}, {1, 1, 3, 2, 0}}},
      {200, 1152, {{288, 288, 1, 3, 1}, {864, 20, 3, 2, 0}}},
  };
  for (int64_t hash_rows = 1; hash_rows <= kMaxHashRows; ++hash_rows) {
    shapes.push_back({40, 90, {{90, 17, hash_rows, hash_rows % 7 + 2, hash_rows}}});
  }
  return shapes;
}

TEST_P(AbsMaxMinCpuTest, MultipliesAsDecoded) {
  for (const Shape& shape : Shapes()) {
    SCOPED_TRACE(testing::Message() << shape.rows << " x " << shape.cols << ", "
                                    << shape.classes[0].hash_rows << " hash rows");
    const auto sketch = ExampleSketch(shape.rows, shape.cols, shape.classes);
    const AbsMaxMinCpuLinear linear(*sketch, kernels());
    ASSERT_EQ(linear.rows(), shape.rows);
    ASSERT_EQ(linear.cols(), shape.cols);
    std::vector<float> decoded(static_cast<size_t>(shape.rows * shape.cols));
    sketch->DecodeRows(0, shape.rows, decoded.data());
    for (const int64_t num_tokens : {1, 2, 3, 8, 19}) {
      const std::vector<float> x = RandomFloats(num_tokens * shape.cols, 3);
      const std::vector<float> prepared = Prepare(linear, x, num_tokens);
      std::vector<float> y(static_cast<size_t>(num_tokens * shape.rows), 7.0f);
      linear.Multiply(prepared.data(), num_tokens, false, y.data(), pool_);
      std::vector<float> added(y.size(), 1.0f);
      linear.Multiply(prepared.data(), num_tokens, true, added.data(), pool_);
      for (int64_t token = 0; token < num_tokens; ++token) {
        // An input is rounded to the nearest of 32767 steps on either side of 0.
        double largest = 0;
        for (int64_t column = 0; column < shape.cols; ++column) {
          largest = std::max(largest,
                             std::abs(double{x[static_cast<size_t>(token * shape.cols + column)]}));
        }
        const double half_step = largest / absmaxmin_internal::kMaxAbsMaxMinInteger / 2;
        for (int64_t row = 0; row < shape.rows; ++row) {
          double expected = 0;
          double magnitude = 0;
          double weight = 0;
          for (int64_t column = 0; column < shape.cols; ++column) {
            const double term =
                static_cast<double>(decoded[static_cast<size_t>(row * shape.cols + column)]) *
                x[static_cast<size_t>(token * shape.cols + column)];
            expected += term;
            magnitude += std::abs(term);
            weight += std::abs(double{decoded[static_cast<size_t>(row * shape.cols + column)]});
          }
          const double tolerance = 4e-6 * magnitude + 1e-6 + half_step * weight;
          const auto index = static_cast<size_t>(token * shape.rows + row);
          ASSERT_NEAR(y[index], expected, tolerance) << token << ", " << row;
          ASSERT_EQ(added[index], 1.0f + y[index]) << token << ", " << row;
        }
      }
    }
  }
}

// With a one for each column in turn the product is that column: also the sign where buckets of a
// column are of equal magnitude.
TEST_P(AbsMaxMinCpuTest, SelectsTheSameBucketsAsDecoding) {
  const auto sketch = ExampleSketch(45, 60, {{60, 7, 3, 2, 1}});
  const AbsMaxMinCpuLinear linear(*sketch, kernels());
  std::vector<float> decoded(45 * 60);
  sketch->DecodeRows(0, 45, decoded.data());
  std::vector<float> x(60 * 60, 0.0f);
  for (size_t column = 0; column < 60; ++column) x[column * 61] = 1.0f;
  const std::vector<float> prepared = Prepare(linear, x, 60);
  std::vector<float> y(60 * 45);
  linear.Multiply(prepared.data(), 60, false, y.data(), pool_);
  for (size_t column = 0; column < 60; ++column) {
    for (size_t row = 0; row < 45; ++row) {
      ASSERT_FLOAT_EQ(y[column * 45 + row], decoded[row * 60 + column]) << row << ", " << column;
    }
  }
}

TEST_P(AbsMaxMinCpuTest, ATokensResultDependsNeitherOnTheBatchNorOnTheThreads) {
  const auto sketch =
      ExampleSketch(300, 257, {{50, 50, 1, 4, 1}, {137, 30, 3, 2, 0}, {70, 1, 2, 3, 0}});
  const AbsMaxMinCpuLinear linear(*sketch, kernels());
  constexpr int64_t kTokens = 21;
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

TEST_P(AbsMaxMinCpuTest, GivesTheSameBitsAsThePortableKernels) {
  for (const Shape& shape : Shapes()) {
    const auto sketch = ExampleSketch(shape.rows, shape.cols, shape.classes);
    for (const int64_t num_tokens : {1, 2, 7}) {
      const std::vector<float> x = RandomFloats(num_tokens * shape.cols, 6);
      std::vector<std::vector<float>> results;
      for (const AbsMaxMinKernels* of_set : {&kernels(), FindAbsMaxMinKernels("portable")}) {
        const AbsMaxMinCpuLinear linear(*sketch, *of_set);
        std::vector<float>& y =
            results.emplace_back(static_cast<size_t>(num_tokens * shape.rows), 7.0f);
        linear.Multiply(Prepare(linear, x, num_tokens).data(), num_tokens, false, y.data(), pool_);
      }
      EXPECT_EQ(results[0], results[1]) << shape.rows << " x " << shape.cols;
    }
  }
}

// A chunk of columns all of the largest level and input: the most that a lane must hold.
TEST_P(AbsMaxMinCpuTest, SumsTheLargestLevelsExactly) {
  const LinearSite site = ExampleSite(33, 300);
  AbsMaxMinLayout layout(1, site.name, {{300, 2, 2, 8, 0}}, {});
  const auto sketch = AbsMaxMinLinear::FromParts(
      site, std::move(layout), std::vector<int8_t>(33 * 4, -128), std::vector<float>(33, 0.5f));
  const AbsMaxMinCpuLinear linear(*sketch, kernels());
  for (const float input : {32767.0f, -32767.0f}) {
    for (const int64_t num_tokens : {1, 3}) {
      const std::vector<float> x(static_cast<size_t>(num_tokens * 300), input);
      std::vector<float> y(static_cast<size_t>(num_tokens * 33));
      linear.Multiply(Prepare(linear, x, num_tokens).data(), num_tokens, false, y.data(), pool_);
      for (const float value : y) EXPECT_EQ(value, -128 * 0.5f * 300 * input);
    }
  }
}

TEST_P(AbsMaxMinCpuTest, HoldsTheSketchAndNotTheWeights) {
  const auto sketch = ExampleSketch(1024, 512, {{512, 64, 2, 2, 0}});
  const AbsMaxMinCpuLinear linear(*sketch, kernels());
  EXPECT_GE(linear.resident_bytes(), 1024 * 512 / 16);
  EXPECT_LT(linear.resident_bytes(), 1024 * 512 / 16 + 20000);
}

INSTANTIATE_TEST_SUITE_P(EveryInstructionSet, AbsMaxMinCpuTest, testing::ValuesIn(AvailableNames()),
                         [](const testing::TestParamInfo<const char*>& test) {
                           return std::string(test.param);
                         });

}  // namespace
}  // namespace ultrasketch
