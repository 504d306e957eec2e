#include "engine/base/dtype.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

#include "engine/base/random.h"

namespace ultrasketch {
namespace {

bool IsHalfNan(uint16_t bits) { return (bits & 0x7fff) > 0x7c00; }
bool IsBf16Nan(uint16_t bits) { return (bits & 0x7fff) > 0x7f80; }

// Floats of every exponent and both signs, next to every boundary between 16-bit values too.
std::vector<float> ManyFloats() {
  std::vector<float> floats;
  for (uint64_t i = 0; i < 4'000'000; ++i) {
    floats.push_back(std::bit_cast<float>(static_cast<uint32_t>(RandomWord(1, 0, i))));
  }
  for (uint32_t half = 0; half < 0x10000; ++half) {
    const uint32_t bits = std::bit_cast<uint32_t>(HalfToFloat(static_cast<uint16_t>(half)));
    // The middle between this half and the next is 2^12 units of a float away.
    for (const uint32_t step : {0u, 1u, 0xfffu, 0x1000u, 0x1001u, 0x1fffu}) {
      floats.push_back(std::bit_cast<float>(bits + step));
    }
  }
  for (int exponent = -30; exponent <= 20; ++exponent) {
    for (uint64_t i = 0; i < 20000; ++i) {
      const double mantissa = 1 + UniformDouble(2, static_cast<uint64_t>(exponent + 100), i);
      floats.push_back(static_cast<float>(std::ldexp(mantissa, exponent)));
      floats.push_back(-floats.back());
    }
  }
  // Ties between subnormal halves: odd multiples of 2^-25.
  for (int i = 1; i < 4096; i += 2) floats.push_back(static_cast<float>(i) * 0x1p-25f);
  return floats;
}

TEST(DTypeTest, NamesRoundTrip) {
  for (int i = 0; i <= static_cast<int>(DType::kF64); ++i) {
    const auto dtype = static_cast<DType>(i);
    EXPECT_EQ(DTypeFromName(DTypeName(dtype)), dtype);
  }
  EXPECT_EQ(DTypeFromName("F8_E4M3"), std::nullopt);
  EXPECT_EQ(DTypeFromName("bf16"), std::nullopt);
  EXPECT_EQ(DTypeFromName(""), std::nullopt);
}

TEST(DTypeTest, ElementBytes) {
  EXPECT_EQ(ElementBytes(DType::kBool), 1);
  EXPECT_EQ(ElementBytes(DType::kI8), 1);
  EXPECT_EQ(ElementBytes(DType::kF16), 2);
  EXPECT_EQ(ElementBytes(DType::kBF16), 2);
  EXPECT_EQ(ElementBytes(DType::kF32), 4);
  EXPECT_EQ(ElementBytes(DType::kF64), 8);
}

TEST(HalfTest, EveryHalfRoundTrips) {
  for (uint32_t i = 0; i < 0x10000; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const float value = HalfToFloat(bits);
    if (IsHalfNan(bits)) {
      EXPECT_TRUE(std::isnan(value)) << i;
      EXPECT_TRUE(IsHalfNan(FloatToHalf(value))) << i;
    } else {
      ASSERT_EQ(FloatToHalf(value), bits) << i;
    }
  }
}

#ifdef __FLT16_MANT_DIG__  // The compiler has _Float16, an implementation that is not ours.
TEST(HalfTest, AgreesWithTheCompiler) {
  for (uint32_t i = 0; i < 0x10000; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    if (IsHalfNan(bits)) continue;
    ASSERT_EQ(std::bit_cast<uint32_t>(HalfToFloat(bits)),
              std::bit_cast<uint32_t>(static_cast<float>(std::bit_cast<_Float16>(bits))))
        << i;
  }
  for (const float value : ManyFloats()) {
    if (std::isnan(value)) {
      ASSERT_TRUE(IsHalfNan(FloatToHalf(value)));
    } else {
      ASSERT_EQ(FloatToHalf(value), std::bit_cast<uint16_t>(static_cast<_Float16>(value))) << value;
    }
  }
}
#endif

TEST(HalfTest, LimitsAndSpecialValues) {
  EXPECT_EQ(FloatToHalf(65504.0f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65519.99f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);  // halfway to 65536: ties to even, infinity
  EXPECT_EQ(FloatToHalf(-1e30f), 0xfc00);
  EXPECT_EQ(FloatToHalf(-0.0f), 0x8000);
  EXPECT_EQ(FloatToHalf(0x1p-24f), 0x0001);
  EXPECT_EQ(FloatToHalf(0x1p-25f), 0x0000);
  EXPECT_EQ(FloatToHalf(0x1.000002p-25f), 0x0001);
  EXPECT_EQ(HalfToFloat(0x0001), 0x1p-24f);
  EXPECT_EQ(HalfToFloat(0x3c00), 1.0f);
  EXPECT_TRUE(std::isinf(HalfToFloat(0xfc00)));
}

TEST(Bf16Test, EveryValueRoundTrips) {
  for (uint32_t i = 0; i < 0x10000; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const float value = Bf16ToFloat(bits);
    if (IsBf16Nan(bits)) {
      EXPECT_TRUE(std::isnan(value)) << i;
      EXPECT_TRUE(IsBf16Nan(FloatToBf16(value))) << i;
    } else {
      ASSERT_EQ(FloatToBf16(value), bits) << i;
    }
  }
}

// Against the definition: of the two neighbours, the nearer, or the even one.
TEST(Bf16Test, RoundsToNearestEven) {
  for (const float value : ManyFloats()) {
    const uint16_t rounded = FloatToBf16(value);
    if (std::isnan(value)) {
      ASSERT_TRUE(IsBf16Nan(rounded));
      continue;
    }
    const auto below = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
    const auto above = static_cast<uint16_t>(below + 1);
    const double to_below = std::fabs(double{value} - double{Bf16ToFloat(below)});
    // Past the largest finite value lies 2^128, which rounding takes infinity for.
    const double above_value =
        (above & 0x7fff) == 0x7f80 ? std::copysign(0x1p128, value) : double{Bf16ToFloat(above)};
    const double to_above = std::fabs(above_value - double{value});
    const bool takes_below =
        std::isinf(value) || to_below < to_above || (to_below == to_above && below % 2 == 0);
    ASSERT_EQ(rounded, takes_below ? below : above) << value;
  }
}

TEST(Bf16Test, NanNeverBecomesInfinity) {
  // Payload bits only where bfloat16 has none.
  EXPECT_TRUE(IsBf16Nan(FloatToBf16(std::bit_cast<float>(0x7f800001u))));
  EXPECT_TRUE(IsBf16Nan(FloatToBf16(std::bit_cast<float>(0xffffffffu))));
}

}  // namespace
}  // namespace ultrasketch
