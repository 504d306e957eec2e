#include "engine/codecs/fold/fold_layout.h"

#include <algorithm>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/codecs/fold_examples.h"

namespace ultrasketch {
namespace {

using testing::ElementsAre;

constexpr const char* kSite = "model.layers.0.mlp_input";

TEST(FoldLayoutTest, HashHasTheDocumentedValues) {
  EXPECT_EQ(HashColumn(0, kSite, 0).key, 0x6f7360bef2e98468u);
  EXPECT_EQ(HashColumn(0, kSite, 0).negative, true);
  EXPECT_EQ(HashColumn(0, kSite, 1).key, 0x08dc9d0de1d69c13u);
  EXPECT_EQ(HashColumn(0, kSite, 1).negative, false);
  EXPECT_EQ(HashColumn(0x123456789abcdef0u, kSite, 1151).key, 0x1a897a17aca34b42u);
  EXPECT_EQ(HashColumn(0x123456789abcdef0u, kSite, 1151).negative, true);
  EXPECT_EQ(HashColumn(0, "", 0).key, 0x1aa722e14ab98097u);
  EXPECT_EQ(HashColumn(0, "", 0).negative, true);
  const FoldLayout layout(7, kSite, {{4, 1, 1}, {8, 2, 1}}, {});
  EXPECT_THAT(layout.columns_by_group(), ElementsAre(4, 9, 3, 5, 7, 8, 0, 1, 10, 11, 2, 6));
  EXPECT_THAT(layout.sign_of_column(), ElementsAre(1, 1, -1, 1, 1, -1, -1, -1, 1, -1, 1, 1));
}

TEST(FoldLayoutTest, EveryGroupOfAClassHoldsTheSameNumberOfColumns) {
  const std::vector<FoldClass> classes = {{10, 1, 2}, {60, 3, 1}, {35, 7, 3}};
  const FoldLayout layout(1, kSite, classes, {});
  EXPECT_EQ(layout.groups(), 10 + 20 + 5);
  EXPECT_EQ(layout.buckets(), 20 + 20 + 15);
  std::vector<int64_t> counts(static_cast<size_t>(layout.groups()), 0);
  for (const int32_t group : layout.group_of_column()) ++counts[static_cast<size_t>(group)];
  int64_t group = 0;
  for (const FoldClass& fold_class : classes) {
    for (int64_t i = 0; i < fold_class.num_groups(); ++i, ++group) {
      EXPECT_EQ(counts[static_cast<size_t>(group)], fold_class.columns_per_group);
    }
  }
}

TEST(FoldLayoutTest, EveryPlaneHasTheSumsTimesItsWeight) {
  // Columns 0 and 1 in three planes, 2 to 5 in pairs in one.
  const FoldLayout layout(1, kSite, {{2, 1, 3}, {4, 2, 1}}, {0, 0, 1, 1, 1, 1});
  ASSERT_EQ(layout.buckets(), 8);
  const std::vector<float> x = {1, 10, 100, 1000, 10000, 100000};
  std::vector<float> z(8);
  layout.Fold(x.data(), z.data());
  const std::vector<int32_t>& columns = layout.columns_by_group();
  const auto term = [&](size_t place) {
    const auto column = static_cast<size_t>(columns[place]);
    return layout.sign_of_column()[column] * x[column];
  };
  for (size_t group = 0; group < 2; ++group) {
    EXPECT_FLOAT_EQ(z[group], 4 * 47.0f / 128 * term(group));
    EXPECT_FLOAT_EQ(z[2 + group], 2 * 47.0f / 128 * term(group));
    EXPECT_FLOAT_EQ(z[4 + group], 47.0f / 128 * term(group));
  }
  EXPECT_FLOAT_EQ(z[6], term(2) + term(3));
  EXPECT_FLOAT_EQ(z[7], term(4) + term(5));
}

TEST(FoldLayoutTest, ColumnsGoToTheGroupsOfTheirClass) {
  std::vector<uint8_t> column_classes(30, 1);
  for (const size_t important : {3u, 17u, 29u}) column_classes[important] = 0;
  const FoldLayout layout(1, kSite, {{3, 1, 2}, {27, 3, 1}}, column_classes);
  for (size_t column = 0; column < 30; ++column) {
    EXPECT_EQ(layout.group_of_column()[column] < 3, column_classes[column] == 0) << column;
  }
}

TEST(FoldLayoutTest, ColumnsByGroupIsThePermutationOfTheGroups) {
  const FoldLayout layout(9, kSite, EvenFoldClasses(101, 37), {});
  std::vector<int32_t> columns = layout.columns_by_group();
  EXPECT_TRUE(std::is_sorted(columns.begin(), columns.end(), [&](int32_t a, int32_t b) {
    return layout.group_of_column()[static_cast<size_t>(a)] <
           layout.group_of_column()[static_cast<size_t>(b)];
  }));
  std::sort(columns.begin(), columns.end());
  for (int32_t column = 0; column < 101; ++column) {
    EXPECT_EQ(columns[static_cast<size_t>(column)], column);
  }
}

TEST(FoldLayoutTest, SitesAndSeedsHaveHashesOfTheirOwn) {
  const std::vector<FoldClass> classes = {{128, 2, 1}};
  const FoldLayout layout(0, "model.layers.0.mlp_input", classes, {});
  const FoldLayout other_site(0, "model.layers.1.mlp_input", classes, {});
  const FoldLayout other_seed(uint64_t{1} << 63, "model.layers.0.mlp_input", classes, {});
  EXPECT_NE(layout.group_of_column(), other_site.group_of_column());
  EXPECT_NE(layout.sign_of_column(), other_site.sign_of_column());
  EXPECT_NE(layout.group_of_column(), other_seed.group_of_column());
  EXPECT_NE(layout.sign_of_column(), other_seed.sign_of_column());
}

TEST(FoldLayoutTest, SignsAreEven) {
  const FoldLayout layout(0, kSite, {{4096, 2, 1}}, {});
  const float sum =
      std::accumulate(layout.sign_of_column().begin(), layout.sign_of_column().end(), 0.0f);
  EXPECT_LT(std::abs(sum), 256.0f);  // four standard deviations
}

TEST(FoldLayoutTest, EvenClassesHaveExactlyTheBucketsAskedFor) {
  for (int64_t cols = 1; cols <= 200; ++cols) {
    for (int64_t buckets = (cols + kMaxColumnsPerGroup - 1) / kMaxColumnsPerGroup;
         buckets <= kMaxFoldPlanes * cols; ++buckets) {
      const std::vector<FoldClass> classes = EvenFoldClasses(cols, buckets);
      ASSERT_TRUE(ValidateFoldClasses(cols, classes).ok()) << cols << " " << buckets;
      int64_t total = 0;
      for (const FoldClass& fold_class : classes) total += fold_class.num_buckets();
      ASSERT_EQ(total, buckets) << cols;
      ASSERT_LE(classes.size(), 2u);
      if (classes.size() == 2) {
        ASSERT_EQ(classes[1].columns_per_group - classes[1].planes,
                  classes[0].columns_per_group - classes[0].planes + 1);
        ASSERT_EQ(std::max(classes[0].columns_per_group, classes[1].columns_per_group) == 1,
                  buckets >= cols);
      }
    }
  }
}

TEST(FoldLayoutTest, SketchIsLinear) {
  const FoldLayout layout(3, kSite, EvenFoldClasses(50, 19), {});
  const std::vector<float> a = RandomFloats(50, 1);
  const std::vector<float> b = RandomFloats(50, 2);
  std::vector<float> sum(50);
  for (size_t i = 0; i < 50; ++i) sum[i] = 2 * a[i] - b[i];
  std::vector<float> sketch_a(19), sketch_b(19), sketch_sum(19);
  layout.Fold(a.data(), sketch_a.data());
  layout.Fold(b.data(), sketch_b.data());
  layout.Fold(sum.data(), sketch_sum.data());
  for (size_t k = 0; k < 19; ++k) {
    EXPECT_NEAR(sketch_sum[k], 2 * sketch_a[k] - sketch_b[k], 1e-4) << k;
  }
}

TEST(FoldLayoutTest, RefusesClassesThatDoNotAddUp) {
  const auto message = [](int64_t cols, std::vector<FoldClass> classes) {
    return std::string(ValidateFoldClasses(cols, classes).message());
  };
  EXPECT_THAT(message(8, {}), testing::HasSubstr("found 0"));
  EXPECT_THAT(message(8, {{6, 2, 1}}), testing::HasSubstr("8 columns in all, found 6"));
  EXPECT_THAT(message(8, {{8, 0, 1}}), testing::HasSubstr("columns a group, found 0"));
  EXPECT_THAT(message(130, {{130, 65, 1}}), testing::HasSubstr("columns a group, found 65"));
  EXPECT_THAT(message(8, {{8, 2, 0}}), testing::HasSubstr("planes, found 0"));
  EXPECT_THAT(message(8, {{8, 2, 9}}), testing::HasSubstr("planes, found 9"));
  EXPECT_THAT(message(8, {{8, 3, 1}}), testing::HasSubstr("multiple of 3"));
  EXPECT_THAT(message(8, {{8, 2, 1}, {4, 2, 1}}), testing::HasSubstr("class 1"));
  EXPECT_THAT(message(8, {{4294967295, 1, 1}}), testing::HasSubstr("found 4294967295"));
  EXPECT_THAT(message(int64_t{1} << 40, {{4294967295, 1, 1}}), testing::HasSubstr("2^31"));
  EXPECT_EQ(message(8, {{8, 2, 1}}), "");
}

}  // namespace
}  // namespace ultrasketch
