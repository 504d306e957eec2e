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
  const FoldLayout layout(7, kSite, {{4, 1}, {8, 2}}, {});
  EXPECT_THAT(layout.columns_by_bucket(), ElementsAre(4, 9, 3, 5, 7, 8, 0, 1, 10, 11, 2, 6));
  EXPECT_THAT(layout.sign_of_column(), ElementsAre(1, 1, -1, 1, 1, -1, -1, -1, 1, -1, 1, 1));
}

TEST(FoldLayoutTest, EveryBucketOfAClassHoldsTheSameNumberOfColumns) {
  const std::vector<FoldClass> classes = {{10, 1}, {60, 3}, {35, 7}};
  const FoldLayout layout(1, kSite, classes, {});
  EXPECT_EQ(layout.buckets(), 10 + 20 + 5);
  std::vector<int64_t> counts(static_cast<size_t>(layout.buckets()), 0);
  for (const int32_t bucket : layout.bucket_of_column()) ++counts[static_cast<size_t>(bucket)];
  int64_t bucket = 0;
  for (const FoldClass& fold_class : classes) {
    for (int64_t i = 0; i < fold_class.num_buckets(); ++i, ++bucket) {
      EXPECT_EQ(counts[static_cast<size_t>(bucket)], fold_class.columns_per_bucket);
    }
  }
}

TEST(FoldLayoutTest, ColumnsGoToTheBucketsOfTheirClass) {
  std::vector<uint8_t> column_classes(30, 1);
  for (const size_t important : {3u, 17u, 29u}) column_classes[important] = 0;
  const FoldLayout layout(1, kSite, {{3, 1}, {27, 3}}, column_classes);
  for (size_t column = 0; column < 30; ++column) {
    EXPECT_EQ(layout.bucket_of_column()[column] < 3, column_classes[column] == 0) << column;
  }
}

TEST(FoldLayoutTest, ColumnsByBucketIsThePermutationOfTheBuckets) {
  const FoldLayout layout(9, kSite, EvenFoldClasses(101, 37), {});
  std::vector<int32_t> columns = layout.columns_by_bucket();
  EXPECT_TRUE(std::is_sorted(columns.begin(), columns.end(), [&](int32_t a, int32_t b) {
    return layout.bucket_of_column()[static_cast<size_t>(a)] <
           layout.bucket_of_column()[static_cast<size_t>(b)];
  }));
  std::sort(columns.begin(), columns.end());
  for (int32_t column = 0; column < 101; ++column) {
    EXPECT_EQ(columns[static_cast<size_t>(column)], column);
  }
}

TEST(FoldLayoutTest, SitesAndSeedsHaveHashesOfTheirOwn) {
  const std::vector<FoldClass> classes = {{128, 2}};
  const FoldLayout layout(0, "model.layers.0.mlp_input", classes, {});
  const FoldLayout other_site(0, "model.layers.1.mlp_input", classes, {});
  const FoldLayout other_seed(uint64_t{1} << 63, "model.layers.0.mlp_input", classes, {});
  EXPECT_NE(layout.bucket_of_column(), other_site.bucket_of_column());
  EXPECT_NE(layout.sign_of_column(), other_site.sign_of_column());
  EXPECT_NE(layout.bucket_of_column(), other_seed.bucket_of_column());
  EXPECT_NE(layout.sign_of_column(), other_seed.sign_of_column());
}

TEST(FoldLayoutTest, SignsAreEven) {
  const FoldLayout layout(0, kSite, {{4096, 2}}, {});
  const float sum =
      std::accumulate(layout.sign_of_column().begin(), layout.sign_of_column().end(), 0.0f);
  EXPECT_LT(std::abs(sum), 256.0f);  // four standard deviations
}

TEST(FoldLayoutTest, EvenClassesHaveExactlyTheBucketsAskedFor) {
  for (int64_t cols = 1; cols <= 200; ++cols) {
    for (int64_t buckets = (cols + kMaxColumnsPerBucket - 1) / kMaxColumnsPerBucket;
         buckets <= cols; ++buckets) {
      const std::vector<FoldClass> classes = EvenFoldClasses(cols, buckets);
      ASSERT_TRUE(ValidateFoldClasses(cols, classes).ok()) << cols << " " << buckets;
      int64_t total = 0;
      for (const FoldClass& fold_class : classes) total += fold_class.num_buckets();
      ASSERT_EQ(total, buckets) << cols;
      ASSERT_LE(classes.size(), 2u);
      if (classes.size() == 2) {
        ASSERT_EQ(classes[1].columns_per_bucket, classes[0].columns_per_bucket + 1);
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
  EXPECT_THAT(message(8, {{6, 2}}), testing::HasSubstr("8 columns in all, found 6"));
  EXPECT_THAT(message(8, {{8, 0}}), testing::HasSubstr("columns a bucket, found 0"));
  EXPECT_THAT(message(130, {{130, 65}}), testing::HasSubstr("columns a bucket, found 65"));
  EXPECT_THAT(message(8, {{8, 3}}), testing::HasSubstr("multiple of 3"));
  EXPECT_THAT(message(8, {{8, 2}, {4, 2}}), testing::HasSubstr("class 1"));
  EXPECT_THAT(message(8, {{4294967295, 1}}), testing::HasSubstr("found 4294967295"));
  EXPECT_THAT(message(int64_t{1} << 40, {{4294967295, 1}}), testing::HasSubstr("2^31"));
  EXPECT_EQ(message(8, {{8, 2}}), "");
}

}  // namespace
}  // namespace ultrasketch
