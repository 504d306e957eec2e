// The hash of the AbsMaxMin sketch.
#include "engine/codecs/absmaxmin/absmaxmin_layout.h"

#include <algorithm>
#include <map>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr char kSite[] = "model.layers.0.mlp_input";

// engine/format/FORMAT.md has these numbers.
TEST(AbsMaxMinLayoutTest, HashesAsDocumented) {
  EXPECT_EQ(AbsMaxMinKey(0, kSite, 0, 0), 0x6f7360bef2e98468u);
  EXPECT_EQ(AbsMaxMinKey(0, kSite, 0, 1), 0x08dc9d0de1d69c13u);
  EXPECT_EQ(AbsMaxMinKey(0, kSite, 1, 0), 0xc3e3718baef42309u);
  EXPECT_EQ(AbsMaxMinKey(0x123456789abcdef0u, kSite, 7, 1151), 0x03c175eabe4f1d56u);

  const AbsMaxMinLayout layout(7, kSite, {{4, 4, 1, 3, 1}, {8, 3, 2, 2, 0}}, {});
  EXPECT_THAT(layout.columns(), testing::ElementsAre(4, 9, 3, 5, 7, 8, 0, 1, 10, 11, 2, 6));
  EXPECT_THAT(layout.BucketsOf(0, 0), testing::ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(layout.BucketsOf(1, 0), testing::ElementsAre(4, 4, 4, 5, 5, 5, 6, 6));
  EXPECT_THAT(layout.BucketsOf(1, 1), testing::ElementsAre(9, 7, 8, 7, 7, 8, 9, 8));
}

TEST(AbsMaxMinLayoutTest, EveryHashRowIsBalanced) {
  const std::vector<AbsMaxMinClass> classes = {
      {10, 10, 1, 4, 0}, {70, 9, 8, 2, 0}, {20, 1, 3, 8, 2}};
  const AbsMaxMinLayout layout(3, kSite, classes, {});
  EXPECT_EQ(layout.cols(), 100);
  EXPECT_EQ(layout.num_buckets(), 10 + 72 + 3);
  EXPECT_EQ(layout.row_bits(), 40 + 144 + 24);
  EXPECT_EQ(layout.row_bytes(), 26);
  EXPECT_EQ(std::set<int32_t>(layout.columns().begin(), layout.columns().end()).size(), 100u);
  int64_t first_bucket = 0;
  for (int64_t index = 0; index < 3; ++index) {
    const AbsMaxMinClass& sketch_class = classes[static_cast<size_t>(index)];
    EXPECT_EQ(layout.FirstBucketOf(index), first_bucket);
    for (int64_t hash_row = 0; hash_row < sketch_class.hash_rows; ++hash_row) {
      std::map<int32_t, int64_t> sizes;
      for (const int32_t bucket : layout.BucketsOf(index, hash_row)) ++sizes[bucket];
      EXPECT_EQ(static_cast<int64_t>(sizes.size()), sketch_class.buckets);
      EXPECT_EQ(sizes.begin()->first, first_bucket);
      EXPECT_EQ(sizes.rbegin()->first, first_bucket + sketch_class.buckets - 1);
      const int64_t even = sketch_class.num_columns / sketch_class.buckets;
      for (const auto& [bucket, size] : sizes) {
        EXPECT_GE(size, even);
        EXPECT_LE(size, even + 1);
      }
      first_bucket += sketch_class.buckets;
    }
  }
}

TEST(AbsMaxMinLayoutTest, HashRowsAreIndependent) {
  constexpr int64_t kColumns = 1000;
  const AbsMaxMinLayout layout(5, kSite, {{kColumns, 100, 3, 2, 0}}, {});
  for (const auto& [one, other] : {std::pair{0, 1}, {0, 2}, {1, 2}}) {
    // Columns that share a bucket of ten in one hash row and in another: 4500 pairs, of which a
    // hundredth by chance.
    std::map<std::pair<int32_t, int32_t>, int> together;
    for (size_t place = 0; place < kColumns; ++place) {
      ++together[{layout.BucketsOf(0, one)[place], layout.BucketsOf(0, other)[place]}];
    }
    int num_pairs = 0;
    for (const auto& [buckets, count] : together) num_pairs += count * (count - 1) / 2;
    EXPECT_GT(num_pairs, 15) << one << " " << other;
    EXPECT_LT(num_pairs, 90) << one << " " << other;
  }
}

TEST(AbsMaxMinLayoutTest, DependsOnSeedAndSite) {
  const std::vector<AbsMaxMinClass> classes = {{64, 8, 2, 2, 0}};
  const AbsMaxMinLayout layout(1, "a", classes, {});
  EXPECT_EQ(AbsMaxMinLayout(1, "a", classes, {}).columns(), layout.columns());
  EXPECT_NE(AbsMaxMinLayout(2, "a", classes, {}).columns(), layout.columns());
  EXPECT_NE(AbsMaxMinLayout(1, "b", classes, {}).columns(), layout.columns());
}

TEST(AbsMaxMinLayoutTest, PutsColumnsInTheirClasses) {
  std::vector<uint8_t> column_classes(20, 1);
  column_classes[3] = column_classes[17] = 0;
  const AbsMaxMinLayout layout(1, kSite, {{2, 2, 1, 4, 0}, {18, 5, 3, 2, 0}}, column_classes);
  EXPECT_THAT(std::vector<int32_t>(layout.columns().begin(), layout.columns().begin() + 2),
              testing::UnorderedElementsAre(3, 17));
  EXPECT_EQ(layout.FirstPlaceOf(1), 2);
}

TEST(AbsMaxMinLayoutTest, SaysWhatIsWrongWithClasses) {
  const auto message = [](int64_t cols, std::vector<AbsMaxMinClass> classes) {
    const absl::Status status = ValidateAbsMaxMinClasses(cols, classes);
    EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(message(10, {{10, 10, 8, 8, 15}}), "");
  EXPECT_EQ(message(256, {{256, 1, 1, 2, 0}}), "");
  EXPECT_THAT(message(10, {}), HasSubstr("found 0"));
  EXPECT_THAT(message(17, std::vector<AbsMaxMinClass>(17, {1, 1, 1, 2, 0})), HasSubstr("found 17"));
  EXPECT_THAT(message(10, {{9, 3, 1, 2, 0}}), HasSubstr("10 columns in all, found 9"));
  EXPECT_THAT(message(10, {{6, 3, 1, 2, 0}, {5, 3, 1, 2, 0}}),
              AllOf(HasSubstr("class 1"), HasSubstr("1 to 4 columns"), HasSubstr("found 5")));
  EXPECT_THAT(message(10, {{0, 1, 1, 2, 0}}), HasSubstr("class 0"));
  EXPECT_THAT(message(10, {{10, 0, 1, 2, 0}}), HasSubstr("1 to 10 buckets, found 0"));
  EXPECT_THAT(message(10, {{10, 11, 1, 2, 0}}), HasSubstr("1 to 10 buckets, found 11"));
  EXPECT_THAT(message(257, {{257, 1, 1, 2, 0}}), HasSubstr("2 to 257 buckets, found 1"));
  EXPECT_THAT(message(10, {{10, 5, 0, 2, 0}}), HasSubstr("hash rows, found 0"));
  EXPECT_THAT(message(10, {{10, 5, 9, 2, 0}}), HasSubstr("hash rows, found 9"));
  EXPECT_THAT(message(10, {{10, 5, 1, 1, 0}}), HasSubstr("bits a bucket, found 1"));
  EXPECT_THAT(message(10, {{10, 5, 1, 9, 0}}), HasSubstr("bits a bucket, found 9"));
  EXPECT_THAT(message(10, {{10, 5, 1, 2, 16}}), HasSubstr("unit exponent, found 16"));
  EXPECT_THAT(message(int64_t{1} << 40, {{int64_t{1} << 31, 1 << 24, 1, 2, 0}}),
              HasSubstr("columns"));
}

}  // namespace
}  // namespace ultrasketch
