#include "engine/compress/products.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

#include "engine/base/random.h"

namespace ultrasketch {
namespace {

std::vector<float> Random(int64_t count, uint64_t stream) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(static_cast<float>(NormalDouble(23, stream, static_cast<uint64_t>(i))));
  }
  return values;
}

TEST(ProductsTest, AddsOuterProducts) {
  ThreadPool pool(3);
  for (const int64_t a_width : {1, 11, 12, 50}) {
    for (const int64_t b_width : {1, 31, 32, 65}) {
      constexpr int64_t kTokens = 29;
      const std::vector<float> a = Random(kTokens * a_width, 1);
      const std::vector<float> b = Random(kTokens * b_width, 2);
      std::vector<double> sums(static_cast<size_t>(a_width * b_width), 0.5);
      AddOuterProducts(a.data(), a_width, b.data(), b_width, kTokens, sums.data(), pool);
      for (int64_t i = 0; i < a_width; ++i) {
        for (int64_t j = 0; j < b_width; ++j) {
          double expected = 0.5;
          for (int64_t token = 0; token < kTokens; ++token) {
            expected += static_cast<double>(a[static_cast<size_t>(token * a_width + i)]) *
                        b[static_cast<size_t>(token * b_width + j)];
          }
          ASSERT_NEAR(sums[static_cast<size_t>(i * b_width + j)], expected, 1e-4)
              << a_width << " " << b_width << " " << i << " " << j;
        }
      }
    }
  }
}

TEST(ProductsTest, SelfProductsAreOuterProductsWithItself) {
  ThreadPool pool(2);
  for (const int64_t width : {1, 13, 64, 97}) {
    const std::vector<float> a = Random(40 * width, 3);
    std::vector<double> expected(static_cast<size_t>(width * width), 0.0);
    std::vector<double> found = expected;
    AddOuterProducts(a.data(), width, a.data(), width, 40, expected.data(), pool);
    AddSelfProducts(a.data(), width, 40, found.data(), pool);
    CompleteSymmetric(width, found.data());
    for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(found[i], expected[i], 1e-4) << i;
  }
}

TEST(ProductsTest, MultipliesByTransposedWeights) {
  ThreadPool pool(2);
  constexpr int64_t kTokens = 15;
  constexpr int64_t kRows = 37;
  constexpr int64_t kCols = 22;
  const std::vector<float> x = Random(kTokens * kCols, 4);
  const std::vector<float> weights = Random(kRows * kCols, 5);
  std::vector<float> transposed(weights.size());
  Transpose(weights.data(), kRows, kCols, transposed.data(), pool);
  std::vector<float> y(static_cast<size_t>(kTokens * kRows), 9.0f);
  MultiplyTransposed(x.data(), transposed.data(), kTokens, kRows, kCols, y.data(), pool);
  for (int64_t token = 0; token < kTokens; ++token) {
    for (int64_t row = 0; row < kRows; ++row) {
      double expected = 0;
      for (int64_t col = 0; col < kCols; ++col) {
        expected += static_cast<double>(x[static_cast<size_t>(token * kCols + col)]) *
                    weights[static_cast<size_t>(row * kCols + col)];
      }
      ASSERT_NEAR(y[static_cast<size_t>(token * kRows + row)], expected, 1e-4);
    }
  }
}

TEST(ProductsTest, DoNotDependOnTheNumberOfThreads) {
  const std::vector<float> a = Random(100 * 70, 6);
  std::vector<double> one_sum(70 * 70, 0.0);
  std::vector<double> many_sum = one_sum;
  ThreadPool one(1);
  ThreadPool many(4);
  AddOuterProducts(a.data(), 70, a.data(), 70, 100, one_sum.data(), one);
  AddOuterProducts(a.data(), 70, a.data(), 70, 100, many_sum.data(), many);
  EXPECT_EQ(one_sum, many_sum);
}

}  // namespace
}  // namespace ultrasketch
