#include "engine/compress/fold_plan.h"

#include <cstdlib>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/codecs/fold/fold_linear.h"
#include "engine/compress/fold_encoder.h"
#include "engine/compress/site_importance.h"

namespace ultrasketch {
namespace {

std::vector<LinearSite> SitesOf(int num_layers, int64_t hidden, int64_t qkv, int64_t intermediate) {
  std::vector<LinearSite> sites;
  for (int layer = 0; layer < num_layers; ++layer) {
    for (const auto& [rows, cols] : {std::pair{qkv, hidden},
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

double BitsOf(const std::vector<LinearSite>& sites, const std::vector<FoldShape>& shapes) {
  int64_t bytes = 0;
  int64_t weights = 0;
  for (size_t i = 0; i < sites.size(); ++i) {
    // As it is then laid out.
    const std::vector<double> importance(static_cast<size_t>(sites[i].cols), 1.0);
    const FoldLayout layout = ChooseFoldLayout(sites[i], shapes[i], 1, importance);
    bytes += FoldStoredBytes(sites[i].rows, sites[i].cols, layout.buckets(),
                             static_cast<int64_t>(layout.classes().size()),
                             !layout.column_classes().empty());
    weights += sites[i].num_weights();
  }
  return 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);
}

TEST(FoldPlanTest, MeetsEveryTargetFromBelowAndClosely) {
  const std::vector<LinearSite> sites = SitesOf(4, 384, 640, 1152);
  for (const bool ranked : {false, true}) {
    for (const double target :
         {0.1, 0.2, 0.25, 1.0 / 3, 0.5, 0.535, 0.7, 0.9, 1.0, 1.7, 3.0, 4.0}) {
      const auto shapes = PlanFold(sites, TypicalImportance(sites), target, ranked);
      ASSERT_TRUE(shapes.ok()) << shapes.status();
      ASSERT_EQ(shapes->size(), sites.size());
      EXPECT_LE(BitsOf(sites, *shapes), target);
      EXPECT_GT(BitsOf(sites, *shapes), 0.99 * target);
    }
  }
}

double ShareOf(const LinearSite& site, const FoldShape& shape) {
  return static_cast<double>(shape.buckets) / static_cast<double>(site.cols);
}

TEST(FoldPlanTest, GivesTheFirstAndTheLastLayerMost) {
  const std::vector<LinearSite> sites = SitesOf(8, 384, 640, 1152);
  const auto shapes = PlanFold(sites, TypicalImportance(sites), 0.5, true);
  ASSERT_TRUE(shapes.ok());
  for (size_t kind = 0; kind < 4; ++kind) {
    const double first = ShareOf(sites[kind], (*shapes)[kind]);
    const double last = ShareOf(sites[28 + kind], (*shapes)[28 + kind]);
    for (size_t layer = 1; layer < 7; ++layer) {
      const double share = ShareOf(sites[4 * layer + kind], (*shapes)[4 * layer + kind]);
      EXPECT_GT(first, share) << layer << " " << kind;
      EXPECT_GT(last, share) << layer << " " << kind;
      // Layers in between are alike but for a byte of buckets.
      EXPECT_LE(std::abs((*shapes)[4 * layer + kind].buckets - (*shapes)[4 + kind].buckets), 8);
    }
  }
  // Attention before the MLP.
  EXPECT_GT(ShareOf(sites[4], (*shapes)[4]), ShareOf(sites[6], (*shapes)[6]));
}

TEST(FoldPlanTest, GivesAModelOfOneLayerAllThereIs) {
  const std::vector<LinearSite> sites = SitesOf(1, 384, 640, 1152);
  const auto shapes = PlanFold(sites, TypicalImportance(sites), 0.5, false);
  ASSERT_TRUE(shapes.ok());
  EXPECT_LE(BitsOf(sites, *shapes), 0.5);
  EXPECT_GT(BitsOf(sites, *shapes), 0.495);
}

TEST(FoldPlanTest, WorksForAwkwardExtents) {
  for (const int64_t hidden : {1, 3, 7, 65, 100}) {
    const std::vector<LinearSite> sites = SitesOf(2, hidden, hidden + 2, 2 * hidden + 1);
    for (double target = 0.05; target < 40; target *= 1.3) {
      const auto shapes = PlanFold(sites, TypicalImportance(sites), target, false);
      if (!shapes.ok()) {
        EXPECT_EQ(shapes.status().code(), absl::StatusCode::kOutOfRange);
        continue;
      }
      EXPECT_LE(BitsOf(sites, *shapes), target);
      for (size_t i = 0; i < sites.size(); ++i) {
        EXPECT_LE((*shapes)[i].buckets, kMaxFoldPlanes * sites[i].cols);
        EXPECT_GE((*shapes)[i].buckets * kMaxColumnsPerGroup, sites[i].cols);
      }
    }
  }
}

TEST(FoldPlanTest, NamesTheRangeOfTargets) {
  const std::vector<LinearSite> sites = SitesOf(1, 384, 640, 1152);
  for (const double target : {0.001, 9.0, 100.0}) {
    const auto shapes = PlanFold(sites, TypicalImportance(sites), target, false);
    ASSERT_FALSE(shapes.ok());
    EXPECT_THAT(std::string(shapes.status().message()),
                testing::AllOf(testing::HasSubstr("expected 0.0"), testing::HasSubstr("found")));
  }
}

}  // namespace
}  // namespace ultrasketch
