#include "server/metrics.h"

#include <map>
#include <optional>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include <prometheus/metric_family.h>

#include "server/process_stats.h"

namespace ultrasketch {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;

std::optional<MetricFamily> FindFamily(const Metrics& metrics, const std::string& name) {
  for (const MetricFamily& family : metrics.collectable()->Collect()) {
    if (family.name == name) return family;
  }
  return std::nullopt;
}

// The metric of a family whose labels are these.
std::optional<ClientMetric> Find(const Metrics& metrics, const std::string& name,
                                 const std::map<std::string, std::string>& labels) {
  const std::optional<MetricFamily> family = FindFamily(metrics, name);
  if (!family) return std::nullopt;
  for (const ClientMetric& metric : family->metric) {
    std::map<std::string, std::string> found;
    for (const auto& label : metric.label) found[label.name] = label.value;
    if (found == labels) return metric;
  }
  return std::nullopt;
}

TEST(MetricsTest, LatencyBucketsHoldTheRoundNumbers) {
  Metrics metrics;
  metrics.ForModel("m");
  const auto metric = Find(metrics, "ultrasketch_inter_token_latency_seconds", {{"model", "m"}});
  ASSERT_TRUE(metric.has_value());
  std::vector<double> bounds;
  for (const auto& bucket : metric->histogram.bucket) bounds.push_back(bucket.upper_bound);
  for (const double bound :
       {0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0}) {
    EXPECT_THAT(bounds, ::testing::Contains(bound));
  }
  EXPECT_EQ(bounds.front(), 0.0005);
  for (size_t i = 1; i + 1 < bounds.size(); ++i) {
    EXPECT_GT(bounds[i] / bounds[i - 1], 1.3);
    EXPECT_LT(bounds[i] / bounds[i - 1], 1.7);
  }
  EXPECT_EQ(bounds[bounds.size() - 2], 5);  // the last is infinity
}

TEST(MetricsTest, TimeToFirstTokenReachesAMinute) {
  Metrics metrics;
  metrics.ForModel("m");
  const auto metric = Find(metrics, "ultrasketch_time_to_first_token_seconds", {{"model", "m"}});
  ASSERT_TRUE(metric.has_value());
  const auto& buckets = metric->histogram.bucket;
  EXPECT_EQ(buckets[buckets.size() - 2].upper_bound, 60);
}

TEST(MetricsTest, StepsAreTimedByPhase) {
  Metrics metrics;
  const auto model = metrics.ForModel("m");
  model->OnStep({.duration = absl::Milliseconds(3), .num_prefill_tokens = 5});
  model->OnStep({.duration = absl::Milliseconds(2), .num_decode_tokens = 1});
  model->OnStep({.duration = absl::Milliseconds(2), .num_decode_tokens = 1});
  model->OnStep({.duration = absl::Seconds(1), .num_prefill_tokens = 1, .num_decode_tokens = 1});
  const auto count = [&](const std::string& phase) {
    const auto metric =
        Find(metrics, "ultrasketch_step_duration_seconds", {{"model", "m"}, {"phase", phase}});
    return metric ? metric->histogram.sample_count : 0;
  };
  EXPECT_EQ(count("prefill"), 1u);
  EXPECT_EQ(count("decode"), 2u);
  EXPECT_EQ(count("mixed"), 1u);
}

TEST(MetricsTest, AnswersAreCountedByCode) {
  Metrics metrics;
  const auto model = metrics.ForModel("m");
  model->requests().OnAnswers(absl::StatusCode::kOk, 1);
  model->requests().OnAnswers(absl::StatusCode::kOk, 1);
  model->requests().OnAnswers(absl::StatusCode::kInvalidArgument, 1);
  metrics.unattributed().OnAnswers(absl::StatusCode::kNotFound, 1);
  const auto value = [&](const std::string& name, const std::string& code) {
    const auto metric =
        Find(metrics, "ultrasketch_requests_total", {{"model", name}, {"code", code}});
    return metric ? metric->counter.value : -1;
  };
  EXPECT_EQ(value("m", "OK"), 2);
  EXPECT_EQ(value("m", "INVALID_ARGUMENT"), 1);
  EXPECT_EQ(value("", "NOT_FOUND"), 1);
  EXPECT_EQ(value("m", "INTERNAL"), -1) << "codes that never occurred are not listed";
}

TEST(MetricsTest, ModelsOutliveTheRegistrysOwner) {
  std::shared_ptr<ModelMetrics> model;
  {
    Metrics metrics;
    model = metrics.ForModel("m");
  }
  model->OnGeneratedTokens(3);
  model->requests().OnAnswers(absl::StatusCode::kOk, 1);
}

TEST(ProcessStatsTest, DescribesThisProcess) {
  const ProcessStats stats = ReadProcessStats();
  EXPECT_GT(stats.resident_bytes, 1 << 20);
  EXPECT_GE(stats.virtual_bytes, stats.resident_bytes);
  EXPECT_GE(stats.num_open_files, 3);
  EXPECT_GE(stats.max_open_files, stats.num_open_files);
  EXPECT_GE(stats.num_threads, 1);
  EXPECT_GT(stats.start_time_seconds, 1.5e9);
}

}  // namespace
}  // namespace ultrasketch
