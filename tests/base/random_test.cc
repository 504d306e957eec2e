#include "engine/base/random.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

using Block = std::array<uint32_t, 4>;

// Random123's kat_vectors for philox4x32 with 10 rounds.
TEST(PhiloxTest, KnownAnswers) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// The mapping of (seed, stream, index) is part of what a seed means: changing it changes the text
// of every seeded request, and the hashes of every compressed model.
TEST(RandomTest, WordsAreTheDocumentedPhiloxBlock) {
  const uint64_t seed = 0x299f31d0a4093822;
  const uint64_t stream = 0x0370734413198a2e;
  const uint64_t index = 0x85a308d3243f6a88;
  EXPECT_EQ(RandomWord(seed, stream, index), 0x94fdccebd16cfe09u);
  EXPECT_EQ(UniformDouble(seed, stream, index),
            static_cast<double>(0x94fdccebd16cfe09u >> 11) * 0x1p-53);
}

TEST(RandomTest, EveryArgumentMatters) {
  std::set<uint64_t> words;
  int count = 0;
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32, ~uint64_t{0}}) {
    for (const uint64_t stream : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32}) {
      for (const uint64_t index : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32}) {
        words.insert(RandomWord(seed, stream, index));
        ++count;
      }
    }
  }
  EXPECT_EQ(words.size(), static_cast<size_t>(count));
}

TEST(RandomTest, UniformDoubleIsUniformOnTheHalfOpenInterval) {
  constexpr int kDraws = 1'000'000;
  constexpr int kBins = 50;
  std::vector<int> histogram(kBins);
  for (int i = 0; i < kDraws; ++i) {
    const double value = UniformDouble(42, 7, static_cast<uint64_t>(i));
    ASSERT_GE(value, 0);
    ASSERT_LT(value, 1);
    ++histogram[static_cast<size_t>(value * kBins)];
  }
  double chi_squared = 0;
  constexpr double kExpected = double{kDraws} / kBins;
  for (const int count : histogram) {
    chi_squared += (count - kExpected) * (count - kExpected) / kExpected;
  }
  EXPECT_LT(chi_squared, 86);  // 49 degrees of freedom: exceeded once in a thousand seeds
  EXPECT_GT(chi_squared, 24);
}

TEST(RandomTest, NormalDoubleHasTheMomentsOfANormal) {
  constexpr int kDraws = 1'000'000;
  double sum = 0, squares = 0, cubes = 0, fourths = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double value = NormalDouble(3, 1, static_cast<uint64_t>(i));
    ASSERT_TRUE(std::isfinite(value));
    sum += value;
    squares += value * value;
    cubes += value * value * value;
    fourths += value * value * value * value;
  }
  EXPECT_NEAR(sum / kDraws, 0, 0.005);
  EXPECT_NEAR(squares / kDraws, 1, 0.007);
  EXPECT_NEAR(cubes / kDraws, 0, 0.02);
  EXPECT_NEAR(fourths / kDraws, 3, 0.05);
}

}  // namespace
}  // namespace ultrasketch
