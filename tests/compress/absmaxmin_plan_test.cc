#include "engine/compress/absmaxmin_plan.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/codecs/absmaxmin/absmaxmin_linear.h"
#include "engine/compress/site_importance.h"

namespace ultrasketch {
namespace {

std::vector<LinearSite> SitesOf(int num_layers, int64_t hidden, int64_t intermediate) {
  std::vector<LinearSite> sites;
  for (int layer = 0; layer < num_layers; ++layer) {
    for (const auto& [rows, cols] : {std::pair{2 * hidden, hidden},
                                     {hidden, hidden},
                                     {2 * intermediate, hidden},
                                     {hidden, intermediate}}) {
      LinearSite site;
      site.layer = layer;
      site.kind = static_cast<SiteKind>(sites.size() % kNumSiteKinds);
      site.rows = rows;
      site.cols = cols;
      sites.push_back(site);
    }
  }
  return sites;
}

double BitsOf(const std::vector<LinearSite>& sites,
              const std::vector<std::vector<AbsMaxMinClass>>& classes) {
  int64_t bytes = 0;
  int64_t weights = 0;
  for (size_t i = 0; i < sites.size(); ++i) {
    bytes += AbsMaxMinStoredBytes(sites[i].rows, sites[i].cols, classes[i], classes[i].size() > 1);
    weights += sites[i].num_weights();
  }
  return 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);
}

TEST(AbsMaxMinPlanTest, MeetsEveryTargetFromBelowAndClosely) {
  const std::vector<LinearSite> sites = SitesOf(4, 384, 1152);
  for (const double own_share : {0.0, 0.5, 1.0}) {
    for (const int64_t hash_rows : {1, 3, 8}) {
      for (const double target : {0.25, 0.5, 0.77, 1.0, 1.9, 4.0}) {
        const AbsMaxMinStyle style = {hash_rows, BucketBitsFor(target), own_share};
        const auto classes = PlanAbsMaxMin(sites, TypicalImportance(sites), target, style);
        ASSERT_TRUE(classes.ok()) << classes.status();
        ASSERT_EQ(classes->size(), sites.size());
        EXPECT_LE(BitsOf(sites, *classes), target);
        EXPECT_GT(BitsOf(sites, *classes), 0.99 * target) << hash_rows << " " << own_share;
      }
    }
  }
}

TEST(AbsMaxMinPlanTest, SpreadsBitsEvenlyOrGivesThemToImportantColumns) {
  constexpr int64_t kRowBits = 192;
  const auto even = ChooseAbsMaxMinClasses(384, kRowBits, {3, 2, 0.0});
  ASSERT_EQ(even.size(), 1u);
  EXPECT_EQ(even[0].hash_rows, 3);
  EXPECT_EQ(even[0].buckets, kRowBits / (3 * 2));
  // Whatever is left over.
  const auto wide = ChooseAbsMaxMinClasses(384, kRowBits, {8, 8, 0.0});
  ASSERT_EQ(wide.size(), 1u);
  EXPECT_EQ(wide[0].buckets, 3);
  const auto half = ChooseAbsMaxMinClasses(384, kRowBits, {3, 2, 0.5});
  ASSERT_EQ(half.size(), 2u);
  EXPECT_EQ(half[0].hash_rows, 1);
  EXPECT_EQ(half[0].buckets, half[0].num_columns);
  EXPECT_NEAR(static_cast<double>(half[0].num_bits()), kRowBits / 2, 4);
  const auto all = ChooseAbsMaxMinClasses(384, kRowBits, {3, 2, 1.0});
  ASSERT_EQ(all.size(), 2u);
  EXPECT_LE(all[1].buckets, 3);
}

TEST(AbsMaxMinPlanTest, ImportantSitesGetMore) {
  const std::vector<LinearSite> sites = SitesOf(2, 256, 512);
  std::vector<double> importance(sites.size(), 1.0);
  importance[4] = 20;
  const auto classes = PlanAbsMaxMin(sites, importance, 0.5, {});
  ASSERT_TRUE(classes.ok());
  const auto bits_of = [&](size_t index) {
    int64_t bits = 0;
    for (const AbsMaxMinClass& c : (*classes)[index]) bits += c.num_bits();
    return bits;
  };
  EXPECT_GT(bits_of(4), 2 * bits_of(0));
}

TEST(AbsMaxMinPlanTest, EveryNumberOfBitsInRangeGivesValidClasses) {
  for (const int64_t cols : {1, 2, 9, 255, 256, 257, 600}) {
    for (const int64_t bits : {2, 5, 8}) {
      for (const int64_t hash_rows : {1, 2, 8}) {
        for (const double own_share : {0.0, 0.3, 1.0}) {
          const AbsMaxMinStyle style = {hash_rows, bits, own_share};
          for (int64_t row_bits = FewestAbsMaxMinRowBits(cols, style);
               row_bits <= MostAbsMaxMinRowBits(cols, style); row_bits += 8) {
            const auto classes = ChooseAbsMaxMinClasses(cols, row_bits, style);
            ASSERT_TRUE(ValidateAbsMaxMinClasses(cols, classes).ok());
            int64_t used = 0;
            for (const AbsMaxMinClass& c : classes) used += c.num_bits();
            EXPECT_LE(used, row_bits);
          }
        }
      }
    }
  }
}

TEST(AbsMaxMinPlanTest, NamesTheRangeOfTargets) {
  const std::vector<LinearSite> sites = SitesOf(1, 384, 1152);
  for (const double target : {0.01, 3.0}) {
    const auto classes = PlanAbsMaxMin(sites, TypicalImportance(sites), target, {});
    ASSERT_FALSE(classes.ok());
    EXPECT_EQ(classes.status().code(), absl::StatusCode::kOutOfRange);
    EXPECT_THAT(std::string(classes.status().message()),
                testing::AllOf(testing::HasSubstr("expected 0."), testing::HasSubstr("found")));
  }
}

}  // namespace
}  // namespace ultrasketch
