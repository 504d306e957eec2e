// The dense products of every instruction set against sums in double precision.
#include "engine/codecs/dense/dense_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/dtype.h"
#include "engine/base/instruction_set.h"
#include "engine/base/random.h"
#include "engine/base/tensor.h"
#include "tests/base/guarded_buffer.h"

namespace ultrasketch {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kUntouched = -12345.0f;

class Numbers {
 public:
  explicit Numbers(uint64_t stream) : stream_(stream) {}
  float Normal() { return static_cast<float>(NormalDouble(17, stream_, counter_++)); }
  int64_t Between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(RandomWord(17, stream_, counter_++) %
                                      static_cast<uint64_t>(high - low + 1));
  }

 private:
  uint64_t stream_;
  uint64_t counter_ = 0;
};

struct Shape {
  int64_t rows;
  int64_t cols;
  int64_t tokens;
  int64_t x_padding;
  int64_t y_padding;
};

std::string Describe(const Shape& shape) {
  return std::to_string(shape.rows) + " x " + std::to_string(shape.cols) + ", " +
         std::to_string(shape.tokens) + " tokens";
}

// A product whose operands end (or begin) at forbidden pages.
class Product {
 public:
  Product(const Shape& shape, DType dtype, Numbers& numbers, GuardSide side)
      : shape_(shape),
        weights_(shape.rows * shape.cols * ElementBytes(dtype), side),
        x_((shape.tokens - 1) * x_stride() + shape.cols, side) {
    values_.resize(static_cast<size_t>(shape.rows * shape.cols));
    uint8_t* out = weights_.data();
    for (float& value : values_) {
      value = numbers.Normal();
      if (dtype == DType::kF32) {
        std::memcpy(out, &value, 4);
      } else {
        const bool is_half = dtype == DType::kF16;
        const uint16_t bits = is_half ? FloatToHalf(value) : FloatToBf16(value);
        value = is_half ? HalfToFloat(bits) : Bf16ToFloat(bits);
        std::memcpy(out, &bits, 2);
      }
      out += ElementBytes(dtype);
    }
    std::fill(x_.begin(), x_.end(), kNaN);
    for (int64_t token = 0; token < shape.tokens; ++token) {
      for (int64_t k = 0; k < shape.cols; ++k) x_[token * x_stride() + k] = numbers.Normal();
    }
  }

  int64_t x_stride() const { return shape_.cols + shape_.x_padding; }
  int64_t y_stride() const { return shape_.rows + shape_.y_padding; }
  const uint8_t* weights() const { return weights_.data(); }
  const float* x() const { return x_.data(); }

  // [tokens][rows], without padding; checks that the padding stays as it was.
  std::vector<float> Run(DenseMultiply multiply, bool accumulate = false, float before = kUntouched,
                         GuardSide side = GuardSide::kEnd) const {
    GuardedBuffer<float> y((shape_.tokens - 1) * y_stride() + shape_.rows, side);
    std::fill(y.begin(), y.end(), before);
    multiply(weights_.data(), shape_.rows, shape_.cols, x_.data(), x_stride(), shape_.tokens,
             accumulate, y.data(), y_stride());
    std::vector<float> result;
    for (int64_t i = 0; i < y.size(); ++i) {
      if (i % y_stride() < shape_.rows) {
        result.push_back(y[i]);
      } else {
        EXPECT_EQ(y[i], before) << Describe(shape_) << ": padding written";
      }
    }
    return result;
  }

  // The product and the largest error that its summation may have.
  std::pair<double, double> Reference(int64_t token, int64_t row) const {
    double sum = 0;
    double magnitude = 0;
    for (int64_t k = 0; k < shape_.cols; ++k) {
      const double term = double{values_[static_cast<size_t>(row * shape_.cols + k)]} *
                          double{x_.data()[token * x_stride() + k]};
      sum += term;
      magnitude += std::fabs(term);
    }
    const double num_roundings = static_cast<double>(shape_.cols / 16 + 8);
    return {sum, num_roundings * 0x1p-23 * magnitude};
  }

 private:
  Shape shape_;
  GuardedBuffer<uint8_t> weights_;
  GuardedBuffer<float> x_;
  std::vector<float> values_;
};

class DenseKernelsTest : public ::testing::TestWithParam<std::tuple<const char*, DType>> {
 protected:
  void SetUp() override {
    const DenseKernels* kernels = FindDenseKernels(std::get<0>(GetParam()));
    if (kernels == nullptr) GTEST_SKIP() << "this processor has no " << std::get<0>(GetParam());
    EXPECT_STREQ(kernels->name, std::get<0>(GetParam()));
    multiply_ = dtype() == DType::kF32    ? kernels->multiply_f32
                : dtype() == DType::kBF16 ? kernels->multiply_bf16
                                          : kernels->multiply_f16;
  }

  DType dtype() const { return std::get<1>(GetParam()); }

  void ExpectMatchesReference(const Shape& shape, Numbers& numbers, GuardSide side) {
    const Product product(shape, dtype(), numbers, side);
    const std::vector<float> plain = product.Run(multiply_, false, kUntouched, side);
    for (int64_t token = 0; token < shape.tokens; ++token) {
      for (int64_t row = 0; row < shape.rows; ++row) {
        const auto [expected, tolerance] = product.Reference(token, row);
        ASSERT_NEAR(plain[static_cast<size_t>(token * shape.rows + row)], expected, tolerance)
            << Describe(shape) << ": token " << token << ", row " << row;
      }
    }
    const std::vector<float> added = product.Run(multiply_, true, 3.25f, side);
    for (size_t i = 0; i < plain.size(); ++i) ASSERT_EQ(added[i], 3.25f + plain[i]);
  }

  DenseMultiply multiply_ = nullptr;
};

TEST_P(DenseKernelsTest, MatchesSumsInDoublePrecision) {
  Numbers numbers(1);
  for (int i = 0; i < 150; ++i) {
    const Shape shape = {numbers.Between(1, 70), numbers.Between(1, 200), numbers.Between(1, 40),
                         numbers.Between(0, 1) * numbers.Between(1, 9),
                         numbers.Between(0, 1) * numbers.Between(1, 9)};
    ExpectMatchesReference(shape, numbers, i % 4 == 0 ? GuardSide::kBegin : GuardSide::kEnd);
    if (HasFatalFailure()) return;
  }
}

TEST_P(DenseKernelsTest, MatchesAtEveryRemainderOfItsTiles) {
  Numbers numbers(2);
  for (int64_t rows = 1; rows <= 17; ++rows) {
    for (int64_t tokens = 1; tokens <= 13; ++tokens) {
      for (const int64_t cols : {1, 15, 16, 17, 32, 33}) {
        ExpectMatchesReference({rows, cols, tokens, 1, 2}, numbers, GuardSide::kEnd);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// So many columns that tokens are taken in blocks, down to blocks of a single tile.
TEST_P(DenseKernelsTest, MatchesWhereTokensAreTakenInBlocks) {
  Numbers numbers(3);
  for (const Shape& shape :
       {Shape{3, 8200, 40, 0, 0}, Shape{5, 21847, 14, 3, 1}, Shape{2, 150001, 9, 0, 0}}) {
    ExpectMatchesReference(shape, numbers, GuardSide::kEnd);
    if (HasFatalFailure()) return;
  }
}

// A row's product with a token is the same to the bit whatever is computed beside it.
TEST_P(DenseKernelsTest, GivesTheSameBitsInEveryTile) {
  Numbers numbers(4);
  for (int i = 0; i < 40; ++i) {
    const Shape shape = {numbers.Between(1, 40), numbers.Between(1, 120), numbers.Between(1, 30),
                         numbers.Between(0, 3), numbers.Between(0, 3)};
    const Product product(shape, dtype(), numbers, GuardSide::kEnd);
    const std::vector<float> whole = product.Run(multiply_);
    for (int j = 0; j < 30; ++j) {
      const int64_t first_row = numbers.Between(0, shape.rows - 1);
      const int64_t num_rows = numbers.Between(1, shape.rows - first_row);
      const int64_t first_token = numbers.Between(0, shape.tokens - 1);
      const int64_t num_tokens = numbers.Between(1, shape.tokens - first_token);
      std::vector<float> part(static_cast<size_t>(num_rows * num_tokens));
      multiply_(product.weights() + first_row * shape.cols * ElementBytes(dtype()), num_rows,
                shape.cols, product.x() + first_token * product.x_stride(), product.x_stride(),
                num_tokens, false, part.data(), num_rows);
      for (int64_t token = 0; token < num_tokens; ++token) {
        for (int64_t row = 0; row < num_rows; ++row) {
          const float expected =
              whole[static_cast<size_t>((first_token + token) * shape.rows + first_row + row)];
          ASSERT_EQ(part[static_cast<size_t>(token * num_rows + row)], expected)
              << Describe(shape) << ": rows from " << first_row << ", " << num_rows
              << "; tokens from " << first_token << ", " << num_tokens;
        }
      }
    }
  }
}

TEST_P(DenseKernelsTest, TakesWeightsAtAnyAddress) {
  Numbers numbers(5);
  for (const int64_t cols : {5, 16, 37}) {
    const Shape shape = {9, cols, 8, 0, 0};
    const Product product(shape, dtype(), numbers, GuardSide::kEnd);
    const std::vector<float> expected = product.Run(multiply_);
    const int64_t num_bytes = shape.rows * cols * ElementBytes(dtype());
    for (int64_t offset = 1; offset < 8; ++offset) {
      GuardedBuffer<uint8_t> moved(num_bytes + offset, GuardSide::kBegin);
      std::copy_n(product.weights(), num_bytes, moved.data() + offset);
      std::vector<float> y(expected.size());
      multiply_(moved.data() + offset, shape.rows, cols, product.x(), product.x_stride(),
                shape.tokens, false, y.data(), shape.rows);
      EXPECT_EQ(y, expected) << "offset " << offset;
    }
  }
}

TEST_P(DenseKernelsTest, LeavesTheOutputAloneWithoutRowsOrTokens) {
  const std::vector<uint8_t> weights(64 * 4);
  const std::vector<float> x(64);
  std::vector<float> y(4, kUntouched);
  multiply_(weights.data(), 0, 16, x.data(), 16, 1, false, y.data(), 4);
  multiply_(weights.data(), 0, 16, x.data(), 16, 4, false, y.data(), 1);
  multiply_(weights.data(), 4, 16, x.data(), 16, 0, false, y.data(), 4);
  EXPECT_THAT(y, ::testing::Each(kUntouched));
}

std::string ParameterName(
    const ::testing::TestParamInfo<std::tuple<const char*, DType>>& parameter) {
  return std::string(std::get<0>(parameter.param)) + "_" +
         std::string(DTypeName(std::get<1>(parameter.param)));
}

INSTANTIATE_TEST_SUITE_P(All, DenseKernelsTest,
                         ::testing::Combine(::testing::Values("avx512", "avx2", "portable"),
                                            ::testing::Values(DType::kF32, DType::kBF16,
                                                              DType::kF16)),
                         ParameterName);

class DenseWideningTest : public ::testing::TestWithParam<const char*> {};

// Every finite pattern of 16 bits in each of the lanes, subnormals included, picked out by inputs
// of one 1 and zeros.
TEST_P(DenseWideningTest, WidensEveryFiniteWeightExactly) {
  const DenseKernels* kernels = FindDenseKernels(GetParam());
  if (kernels == nullptr) GTEST_SKIP();
  constexpr int64_t kCols = 16;
  constexpr int64_t kRows = 65536 / kCols;
  std::vector<float> x(kCols * kCols, 0.0f);
  for (int64_t lane = 0; lane < kCols; ++lane) x[static_cast<size_t>(lane * kCols + lane)] = 1;
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    const uint16_t exponent = dtype == DType::kF16 ? 0x7c00 : 0x7f80;
    std::vector<uint16_t> weights(65536);
    for (size_t i = 0; i < weights.size(); ++i) {
      weights[i] = static_cast<uint16_t>((i & exponent) == exponent ? 0 : i);
    }
    std::vector<float> y(65536);
    (dtype == DType::kF16 ? kernels->multiply_f16 : kernels->multiply_bf16)(
        reinterpret_cast<const uint8_t*>(weights.data()), kRows, kCols, x.data(), kCols, kCols,
        false, y.data(), kRows);
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t lane = 0; lane < kCols; ++lane) {
        const uint16_t bits = weights[static_cast<size_t>(row * kCols + lane)];
        ASSERT_EQ(y[static_cast<size_t>(lane * kRows + row)],
                  dtype == DType::kF16 ? HalfToFloat(bits) : Bf16ToFloat(bits))
            << DTypeName(dtype) << " " << bits;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, DenseWideningTest, ::testing::Values("avx512", "avx2", "portable"));

TEST(DenseKernelsChoiceTest, AreThoseOfTheInstructionSet) {
  EXPECT_EQ(&GetDenseKernels(), FindDenseKernels(InstructionSet()));
  EXPECT_STREQ(GetDenseKernels().name, InstructionSet());
  EXPECT_EQ(FindDenseKernels("sse9"), nullptr);
}

}  // namespace
}  // namespace ultrasketch
