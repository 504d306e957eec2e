#include "engine/bench/load/lengths.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/base/temporary_folder.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Le;

std::vector<int64_t> DrawSome(const LengthDistribution& lengths, int count, uint64_t seed = 7) {
  std::vector<int64_t> drawn;
  for (int i = 0; i < count; ++i) drawn.push_back(lengths.Draw(seed, 1, static_cast<uint64_t>(i)));
  return drawn;
}

double Mean(const std::vector<int64_t>& values) {
  double sum = 0;
  for (const int64_t value : values) sum += static_cast<double>(value);
  return sum / static_cast<double>(values.size());
}

TEST(LengthsTest, ANumberIsAlwaysThatNumber) {
  const auto lengths = LengthDistribution::Parse("128");
  ASSERT_TRUE(lengths.ok()) << lengths.status();
  EXPECT_THAT(DrawSome(*lengths, 10), Each(128));
  EXPECT_EQ(lengths->longest(), 128);
}

TEST(LengthsTest, ARangeIsUniformWithBothEnds) {
  const auto lengths = LengthDistribution::Parse("3:6");
  ASSERT_TRUE(lengths.ok()) << lengths.status();
  const std::vector<int64_t> drawn = DrawSome(*lengths, 40'000);
  for (int64_t value = 3; value <= 6; ++value) {
    // 10,000 are expected, with a standard deviation of 87.
    EXPECT_NEAR(static_cast<double>(std::count(drawn.begin(), drawn.end(), value)), 10'000, 500);
  }
  EXPECT_THAT(drawn, Each(AllOf(Ge(3), Le(6))));
  EXPECT_EQ(lengths->longest(), 6);
}

TEST(LengthsTest, LognormalHasItsMedianAndMeanAndEndsAtItsMost) {
  const auto lengths = LengthDistribution::Parse("lognormal:200:0.5:100000");
  ASSERT_TRUE(lengths.ok()) << lengths.status();
  std::vector<int64_t> drawn = DrawSome(*lengths, 40'000);
  EXPECT_NEAR(Mean(drawn), 200 * std::exp(0.125), 4);
  std::nth_element(drawn.begin(), drawn.begin() + 20'000, drawn.end());
  EXPECT_NEAR(static_cast<double>(drawn[20'000]), 200, 4);

  const auto capped = LengthDistribution::Parse("lognormal:200:3:300");
  ASSERT_TRUE(capped.ok()) << capped.status();
  EXPECT_THAT(DrawSome(*capped, 1000), Each(AllOf(Ge(1), Le(300))));
  EXPECT_EQ(capped->longest(), 300);
}

TEST(LengthsTest, AFilesLinesComeInOrderOverAndOver) {
  const TemporaryFolder folder;
  const std::string path = folder.Write("lengths", "5\n  9 \r\n\n2\n");
  const auto lengths = LengthDistribution::Parse("file:" + path);
  ASSERT_TRUE(lengths.ok()) << lengths.status();
  EXPECT_THAT(DrawSome(*lengths, 5), ElementsAre(5, 9, 2, 5, 9));
  EXPECT_EQ(lengths->longest(), 9);
}

TEST(LengthsTest, WrongLinesOfAFileAreNamed) {
  const TemporaryFolder folder;
  const auto wrong = LengthDistribution::Parse("file:" + folder.Write("a", "5\n0\n"));
  EXPECT_TRUE(absl::IsInvalidArgument(wrong.status()));
  EXPECT_THAT(wrong.status().message(), AllOf(HasSubstr("a:2: "), HasSubstr("\"0\"")));
  EXPECT_TRUE(absl::IsInvalidArgument(
      LengthDistribution::Parse("file:" + folder.Write("b", "\n\n")).status()));
  EXPECT_TRUE(absl::IsNotFound(LengthDistribution::Parse("file:" + folder.File("c")).status()));
}

TEST(LengthsTest, AnythingElseIsRefused) {
  for (const char* text :
       {"", "x", "0", "-1", "1.5", "5:", ":5", "6:3", "1:2:3", "lognormal:", "lognormal:200:0.5",
        "lognormal:0:1:10", "lognormal:nan:1:10", "lognormal:10:-1:20", "lognormal:10:inf:20",
        "lognormal:10:1:0", "lognormal:10:1:20:5", "99999999999999999999", "16777217"}) {
    const auto lengths = LengthDistribution::Parse(text);
    EXPECT_TRUE(absl::IsInvalidArgument(lengths.status())) << text;
    EXPECT_THAT(lengths.status().message(), HasSubstr("expected")) << text;
  }
}

TEST(LengthsTest, TheSameSeedGivesTheSameLengths) {
  const auto lengths = LengthDistribution::Parse("1:1000000");
  ASSERT_TRUE(lengths.ok());
  EXPECT_EQ(DrawSome(*lengths, 20, 1), DrawSome(*lengths, 20, 1));
  EXPECT_NE(DrawSome(*lengths, 20, 1), DrawSome(*lengths, 20, 2));
}

}  // namespace
}  // namespace ultrasketch
