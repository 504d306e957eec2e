#include "engine/kv/int8_row.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

#include "engine/base/random.h"

namespace ultrasketch {
namespace {

TEST(Int8RowTest, RoundsToTheNearestMultipleOfItsScale) {
  for (const int size : {1, 2, 10, 64, 255}) {
    for (const double magnitude : {1e-20, 3e-3, 1.0, 700.0, 1e30}) {
      std::vector<float> row;
      float largest = 0;
      for (int i = 0; i < size; ++i) {
        row.push_back(static_cast<float>(
            magnitude * NormalDouble(7, static_cast<uint64_t>(size), static_cast<uint64_t>(i))));
        largest = std::max(largest, std::fabs(row.back()));
      }
      std::vector<int8_t> rounded(row.size());
      const float scale = ScaleOf(RoundToInt8(row, rounded.data()));
      EXPECT_GE(scale * 127, largest * (1 - 1e-6f));
      EXPECT_LE(scale * 127, largest * (1 + 1.0f / 127));
      for (size_t i = 0; i < row.size(); ++i) {
        EXPECT_LE(std::fabs(row[i] - rounded[i] * scale), 0.5001f * scale);
      }
    }
  }
}

TEST(Int8RowTest, KeepsRowsOfZeros) {
  std::vector<int8_t> rounded(3, 5);
  EXPECT_EQ(RoundToInt8(std::vector<float>{0.0f, -0.0f, 1e-38f}, rounded.data()), 0);
  EXPECT_EQ(rounded, std::vector<int8_t>(3, 0));
}

TEST(Int8RowTest, DoesNotHideWhatIsNotFinite) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float value : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<int8_t> rounded(3, 5);
    EXPECT_TRUE(
        std::isnan(ScaleOf(RoundToInt8(std::vector<float>{1.0f, value, 2.0f}, rounded.data()))));
  }
}

}  // namespace
}  // namespace ultrasketch
