#include "engine/kv/fp16_row.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

uint16_t Round(float value) {
  uint16_t rounded;
  RoundToFp16({&value, 1}, &rounded);
  return rounded;
}

// A finite binary16.
double ValueOf(uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 10 & 31u);
  const double mantissa = bits & 1023u;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return (bits & 0x8000u) != 0 ? -magnitude : magnitude;
}

float Next(float value) { return std::nextafter(value, std::numeric_limits<float>::infinity()); }
float Before(float value) { return std::nextafter(value, -std::numeric_limits<float>::infinity()); }

TEST(Fp16RowTest, KeepsEveryBinary16) {
  for (uint32_t bits = 0; bits < 0x7c00u; ++bits) {
    EXPECT_EQ(Round(static_cast<float>(ValueOf(bits))), bits);
    EXPECT_EQ(Round(static_cast<float>(ValueOf(bits | 0x8000u))), bits | 0x8000u);
  }
}

TEST(Fp16RowTest, RoundsToTheNearestTiesToEven) {
  for (uint32_t bits = 0; bits < 0x7bffu; ++bits) {
    const auto middle = static_cast<float>((ValueOf(bits) + ValueOf(bits + 1)) / 2);
    const uint32_t even = bits + bits % 2;
    ASSERT_EQ(Round(middle), even) << bits;
    ASSERT_EQ(Round(-middle), even | 0x8000u) << bits;
    ASSERT_EQ(Round(Before(middle)), bits) << bits;
    ASSERT_EQ(Round(Next(middle)), bits + 1) << bits;
  }
}

TEST(Fp16RowTest, SaturatesWhatIsFiniteAlone) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float large :
       {65504.0f, 65519.0f, 65520.0f, 65536.0f, 1e9f, std::numeric_limits<float>::max()}) {
    EXPECT_EQ(Round(large), 0x7bff) << large;
    EXPECT_EQ(Round(-large), 0xfbff) << large;
  }
  EXPECT_EQ(Round(kInfinity), 0x7c00);
  EXPECT_EQ(Round(-kInfinity), 0xfc00);
  EXPECT_EQ(Round(std::numeric_limits<float>::quiet_NaN()) & 0x7fff, 0x7e00);
  EXPECT_EQ(Round(std::numeric_limits<float>::denorm_min()), 0);
  EXPECT_EQ(Round(-0.0f), 0x8000);
}

}  // namespace
}  // namespace ultrasketch
