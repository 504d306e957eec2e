#include "engine/compress/sensitivity.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/compress/cpu_fit_device.h"
#include "engine/compress/site_importance.h"
#include "engine/models/layer_table.h"

namespace ultrasketch {
namespace {

class SensitivityTest : public testing::Test {
 protected:
  void SetUp() override {
    auto opened = Checkpoint::Open(SAMPLE_MODEL_DIR);
    ASSERT_TRUE(opened.ok()) << opened.status();
    checkpoint_ = *std::move(opened);
    sites_ = LinearSites(checkpoint_->config());
    for (int window = 0; window < 3; ++window) {
      std::vector<int32_t> ids;
      for (int i = 0; i < 40; ++i) ids.push_back(5 + (window * 977 + i * i * 31) % 8000);
      text_.windows.push_back(ids);
    }
  }

  std::vector<double> Measure(int num_threads, const SensitivityOptions& options = {}) {
    ThreadPool pool(num_threads);
    auto measured =
        MeasureSensitivities(*checkpoint_, sites_, text_, options, *MakeCpuFitDevice(pool), pool);
    EXPECT_TRUE(measured.ok()) << measured.status();
    return measured.value_or(std::vector<double>());
  }

  std::shared_ptr<const Checkpoint> checkpoint_;
  std::vector<LinearSite> sites_;
  CalibrationText text_;
};

TEST_F(SensitivityTest, EverySiteOfATrainedModelMatters) {
  const std::vector<double> measured = Measure(2);
  ASSERT_EQ(measured.size(), sites_.size());
  for (size_t i = 0; i < sites_.size(); ++i) {
    EXPECT_GT(measured[i], 1e-4) << sites_[i].name;
    EXPECT_LT(measured[i], std::log(8192.0)) << sites_[i].name;
  }
  // An error of the first layer passes through all others.
  const auto mean = [&](size_t first, size_t count) {
    return std::accumulate(measured.begin() + static_cast<int64_t>(first),
                           measured.begin() + static_cast<int64_t>(first + count), 0.0) /
           static_cast<double>(count);
  };
  EXPECT_GT(mean(0, 4), 2 * mean(4, measured.size() - 4));
}

TEST_F(SensitivityTest, DoesNotDependOnTheNumberOfThreads) { EXPECT_EQ(Measure(1), Measure(3)); }

TEST_F(SensitivityTest, EndsWhenToldTo) {
  SensitivityOptions options;
  options.progress = [](double fraction) {
    return fraction > 0.2 ? absl::CancelledError("enough") : absl::OkStatus();
  };
  ThreadPool pool(1);
  const auto measured =
      MeasureSensitivities(*checkpoint_, sites_, text_, options, *MakeCpuFitDevice(pool), pool);
  EXPECT_EQ(measured.status().code(), absl::StatusCode::kCancelled);
}

TEST(SiteImportanceTest, IsForEachWeightAndNeverZero) {
  std::vector<LinearSite> sites(4);
  for (size_t i = 0; i < sites.size(); ++i) {
    sites[i].kind = SiteKind::kMlpInput;
    sites[i].layer = static_cast<int>(i);
    sites[i].cols = 10;
    sites[i].rows = i == 1 ? 20 : 10;
  }
  const std::vector<double> importance =
      ImportanceFromSensitivities(sites, {3.0, 3.0, 0.0, std::nan("")});
  EXPECT_DOUBLE_EQ(importance[0], 2 * importance[1]);
  for (const double value : importance) EXPECT_GT(value, 0);
  EXPECT_THAT(ImportanceFromSensitivities(sites, {0, 0, 0, 0}),
              testing::Each(testing::AllOf(testing::Gt(0), testing::Lt(1e9))));
}

}  // namespace
}  // namespace ultrasketch
