#include "engine/kv/int4_row.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/random.h"
#include "engine/kv/int8_row.h"

namespace ultrasketch {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<float> Normals(int size, double deviation = 1) {
  std::vector<float> row;
  for (int i = 0; i < size; ++i) {
    row.push_back(static_cast<float>(
        deviation * NormalDouble(11, static_cast<uint64_t>(size), static_cast<uint64_t>(i))));
  }
  return row;
}

double SquaredNorm(const std::vector<float>& row) {
  return std::inner_product(row.begin(), row.end(), row.begin(), 0.0);
}

TEST(Int4RowTest, RotatingTwiceChangesNothingAndKeepsLengths) {
  for (const int size : {1, 2, 3, 10, 40, 64, 80, 96, 128, 160, 256}) {
    const std::vector<float> row = Normals(size);
    std::vector<float> rotated = row;
    RotateRow(absl::MakeSpan(rotated));
    EXPECT_NEAR(SquaredNorm(rotated), SquaredNorm(row), 1e-5 * SquaredNorm(row)) << size;
    EXPECT_EQ(rotated == row, size % 2 == 1) << size;
    RotateRow(absl::MakeSpan(rotated));
    for (int i = 0; i < size; ++i) {
      EXPECT_NEAR(rotated[static_cast<size_t>(i)], row[static_cast<size_t>(i)], 1e-5) << size;
    }
  }
}

// One large dimension becomes many of the same size.
TEST(Int4RowTest, RotatingSpreadsALargeDimension) {
  std::vector<float> row(64, 0.0f);
  row[5] = 80;
  RotateRow(absl::MakeSpan(row));
  for (const float value : row) EXPECT_FLOAT_EQ(std::fabs(value), 10);
}

TEST(Int4RowTest, RoundsToTheNearestLevel) {
  for (const int size : {1, 2, 8, 31, 32}) {
    for (const double magnitude : {1e-20, 3e-3, 1.0, 700.0, 1e30}) {
      const std::vector<float> group = Normals(size, magnitude);
      std::vector<uint8_t> codes(group.size());
      const float scale = ScaleOf(RoundToInt4(group, codes.data()));
      ASSERT_GT(scale, 0);
      for (size_t i = 0; i < group.size(); ++i) {
        ASSERT_LT(codes[i], 16);
        const float found = std::fabs(group[i] - kInt4Levels[codes[i]] * scale);
        for (const int8_t level : kInt4Levels) {
          ASSERT_LE(found, std::fabs(group[i] - level * scale) + 1e-4f * scale);
        }
      }
    }
  }
}

TEST(Int4RowTest, LosesLittleOfNormalNumbers) {
  double lost = 0;
  double all = 0;
  const std::vector<float> row = Normals(32 * 500);
  for (size_t first = 0; first < row.size(); first += kInt4Group) {
    const absl::Span<const float> group = absl::MakeConstSpan(row).subspan(first, kInt4Group);
    uint8_t codes[kInt4Group];
    const float scale = ScaleOf(RoundToInt4(group, codes));
    for (size_t i = 0; i < group.size(); ++i) {
      const double error = group[i] - kInt4Levels[codes[i]] * scale;
      lost += error * error;
      all += double{group[i]} * group[i];
    }
  }
  EXPECT_LT(lost / all, 0.0085);
}

TEST(Int4RowTest, GroupsOfZerosAndWhatIsNotFinite) {
  std::vector<uint8_t> codes(3);
  EXPECT_EQ(RoundToInt4(std::vector<float>{0.0f, -0.0f, 1e-38f}, codes.data()), 0);
  for (const float bad :
       {kNaN, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    EXPECT_TRUE(std::isnan(ScaleOf(RoundToInt4(std::vector<float>{1, bad, 2}, codes.data()))));
    EXPECT_THAT(codes, ::testing::Each(::testing::Lt(16)));
  }
  EXPECT_TRUE(std::isfinite(ScaleOf(
      RoundToInt4(std::vector<float>{std::numeric_limits<float>::max(), 1, 2}, codes.data()))));
}

}  // namespace
}  // namespace ultrasketch
