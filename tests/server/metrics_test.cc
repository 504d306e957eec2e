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

std::optional<MetricFamily> FindFamily(const prometheus::Collectable& collectable,
                                       const std::string& name) {
  for (const MetricFamily& family : collectable.Collect()) {
    if (family.name == name) return family;
  }
  return std::nullopt;
}

// The metric of a family whose labels are these.
std::optional<ClientMetric> Find(const prometheus::Collectable& collectable,
                                 const std::string& name,
                                 const std::map<std::string, std::string>& labels) {
  const std::optional<MetricFamily> family = FindFamily(collectable, name);
  if (!family) return std::nullopt;
  for (const ClientMetric& metric : family->metric) {
    std::map<std::string, std::string> found;
    for (const auto& label : metric.label) found[label.name] = label.value;
    if (found == labels) return metric;
  }
  return std::nullopt;
}

std::optional<ClientMetric> Find(const Metrics& metrics, const std::string& name,
                                 const std::map<std::string, std::string>& labels) {
  return Find(*metrics.collectable(), name, labels);
}

// The value of a counter with the label `model` and another one; nullopt when it is not there.
std::optional<double> CounterValue(const Metrics& metrics, const std::string& name,
                                   const std::string& model, const std::string& label,
                                   const std::string& value) {
  const auto metric = Find(metrics, name, {{"model", model}, {label, value}});
  return metric ? std::optional<double>(metric->counter.value) : std::nullopt;
}

TEST(MetricsTest, LatencyBucketsHoldTheRoundNumbers) {
  Metrics metrics;
  const auto model = metrics.ForModel("m");
  const auto metric = Find(metrics, "ultrasketch_inter_token_latency_seconds", {{"model", "m"}});
  ASSERT_TRUE(metric.has_value());
  std::vector<double> bounds;
  for (const auto& bucket : metric->histogram.bucket) bounds.push_back(bucket.upper_bound);
  for (const double bound : {0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01,
                             0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0}) {
    EXPECT_THAT(bounds, ::testing::Contains(bound));
  }
  EXPECT_EQ(bounds.front(), 0.00002);
  for (size_t i = 1; i + 1 < bounds.size(); ++i) {
    EXPECT_GT(bounds[i] / bounds[i - 1], 1.3);
    EXPECT_LT(bounds[i] / bounds[i - 1], 1.7);
  }
  EXPECT_EQ(bounds[bounds.size() - 2], 5);  // the last is infinity
}

TEST(MetricsTest, TimeToFirstTokenReachesAMinute) {
  Metrics metrics;
  const auto model = metrics.ForModel("m");
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

TEST(MetricsTest, StagesAreSummedByPhaseAndThereFromTheStart) {
  Metrics metrics;
  const auto model = metrics.ForModel("m");
  const auto find = [&](const std::string& phase, const std::string& stage) {
    return Find(metrics, "ultrasketch_step_stage_seconds",
                {{"model", "m"}, {"phase", phase}, {"stage", stage}});
  };
  for (const char* phase : {"prefill", "decode", "mixed"}) {
    for (const char* stage : {"sketch", "gemm", "attention", "head", "sampling", "other"}) {
      const auto metric = find(phase, stage);
      ASSERT_TRUE(metric.has_value()) << phase << " " << stage;
      EXPECT_EQ(metric->summary.sample_count, 0u);
      EXPECT_EQ(metric->summary.sample_sum, 0);
      EXPECT_TRUE(metric->summary.quantile.empty());
    }
  }
  StepReport report = {.duration = absl::Milliseconds(3), .num_decode_tokens = 1};
  model->OnStep(report);  // not measured
  report.stages.emplace();
  (*report.stages)[StepStage::kSketch] = absl::Milliseconds(2);
  (*report.stages)[StepStage::kOther] = absl::Milliseconds(1);
  model->OnStep(report);
  model->OnStep(report);
  const auto sketch = find("decode", "sketch");
  EXPECT_EQ(sketch->summary.sample_count, 2u);
  EXPECT_DOUBLE_EQ(sketch->summary.sample_sum, 0.004);
  const auto head = find("decode", "head");
  EXPECT_EQ(head->summary.sample_count, 2u);
  EXPECT_EQ(head->summary.sample_sum, 0);
  EXPECT_DOUBLE_EQ(find("decode", "other")->summary.sample_sum, 0.002);
  EXPECT_EQ(find("prefill", "sketch")->summary.sample_count, 0u);
  EXPECT_EQ(FindFamily(*metrics.collectable(), "ultrasketch_step_stage_seconds")->type,
            prometheus::MetricType::Summary);
}

TEST(MetricsTest, AModelThatIsGoneLeavesNoSeries) {
  Metrics metrics;
  const auto stays = metrics.ForModel("stays");
  const auto num_series = [&] {
    size_t count = 0;
    for (const auto& family : metrics.collectable()->Collect()) count += family.metric.size();
    return count;
  };
  const size_t before = num_series();
  for (int i = 0; i < 3; ++i) {
    const auto model = metrics.ForModel("comes and goes");
    model->OnGeneratedTokens(7);
    EXPECT_GT(num_series(), before);
    EXPECT_EQ(Find(metrics, "ultrasketch_generated_tokens_total", {{"model", "comes and goes"}})
                  ->counter.value,
              7);
  }
  EXPECT_EQ(num_series(), before);
}

TEST(MetricsTest, ANewVersionOfAModelGoesOnWithTheCountsOfTheOld) {
  Metrics metrics;
  StepReport report = {.duration = absl::Milliseconds(3), .num_decode_tokens = 1};
  report.stages.emplace();
  auto old_version = metrics.ForModel("m");
  old_version->OnStep(report);
  const auto new_version = metrics.ForModel("m");
  old_version = nullptr;
  new_version->OnStep(report);
  const auto family = FindFamily(*metrics.collectable(), "ultrasketch_step_stage_seconds");
  EXPECT_EQ(family->metric.size(), 3 * kNumStepStages);
  const auto metric = Find(metrics, "ultrasketch_step_stage_seconds",
                           {{"model", "m"}, {"phase", "decode"}, {"stage", "other"}});
  EXPECT_EQ(metric->summary.sample_count, 2u);
}

TEST(MetricsTest, AnswersAreCountedByCode) {
  Metrics metrics;
  const auto model = metrics.ForModel("m");
  model->requests().OnAnswer(absl::StatusCode::kOk);
  model->requests().OnAnswer(absl::StatusCode::kOk);
  model->requests().OnAnswer(absl::StatusCode::kInvalidArgument);
  metrics.unattributed().OnAnswer(absl::StatusCode::kNotFound);
  metrics.unattributed().OnAnswer(static_cast<absl::StatusCode>(99));
  EXPECT_EQ(CounterValue(metrics, "ultrasketch_requests_total", "m", "code", "OK"), 2);
  EXPECT_EQ(CounterValue(metrics, "ultrasketch_requests_total", "m", "code", "INVALID_ARGUMENT"),
            1);
  EXPECT_EQ(CounterValue(metrics, "ultrasketch_requests_total", "", "code", "NOT_FOUND"), 1);
  EXPECT_EQ(CounterValue(metrics, "ultrasketch_requests_total", "", "code", "UNKNOWN"), 1);
}

TEST(MetricsTest, EveryCodeAndReasonIsThereFromTheStart) {
  Metrics metrics;
  const auto small = metrics.ForModel("m");
  for (const char* model : {"m", ""}) {
    for (const char* code :
         {"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
          "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
          "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
          "UNAUTHENTICATED"}) {
      EXPECT_EQ(CounterValue(metrics, "ultrasketch_requests_total", model, "code", code), 0)
          << code;
    }
    for (const char* reason :
         {"invalid_argument", "unknown_model", "queue_full", "queued_bytes_full", "too_large",
          "response_too_large", "draining", "client_gone", "other"}) {
      EXPECT_EQ(
          CounterValue(metrics, "ultrasketch_rejected_requests_total", model, "reason", reason), 0)
          << reason;
    }
  }
}

TEST(MetricsTest, RejectionsAreCountedByReason) {
  Metrics metrics;
  const auto model = metrics.ForModel("m");
  const std::map<RejectionReason, const char*> reasons = {
      {RejectionReason::kInvalidArgument, "invalid_argument"},
      {RejectionReason::kUnknownModel, "unknown_model"},
      {RejectionReason::kQueueFull, "queue_full"},
      {RejectionReason::kQueuedBytesFull, "queued_bytes_full"},
      {RejectionReason::kServerFull, "server_full"},
      {RejectionReason::kClientFull, "client_full"},
      {RejectionReason::kTooLarge, "too_large"},
      {RejectionReason::kResponseTooLarge, "response_too_large"},
      {RejectionReason::kDraining, "draining"},
      {RejectionReason::kClientGone, "client_gone"},
      {RejectionReason::kOther, "other"}};
  ASSERT_EQ(reasons.size(), kNumRejectionReasons);
  for (const auto& [reason, label] : reasons) {
    model->requests().OnRejected(reason);
    EXPECT_EQ(CounterValue(metrics, "ultrasketch_rejected_requests_total", "m", "reason", label), 1)
        << label;
  }
}

TEST(MetricsTest, ModelsOutliveTheRegistrysOwner) {
  std::shared_ptr<prometheus::Collectable> collectable;
  std::shared_ptr<ModelMetrics> model;
  {
    Metrics metrics;
    collectable = metrics.collectable();
    model = metrics.ForModel("m");
  }
  model->OnGeneratedTokens(3);
  model->requests().OnAnswer(absl::StatusCode::kOk);
  const auto generated = Find(*collectable, "ultrasketch_generated_tokens_total", {{"model", "m"}});
  ASSERT_TRUE(generated.has_value());
  EXPECT_EQ(generated->counter.value, 3);
  const auto answers =
      Find(*collectable, "ultrasketch_requests_total", {{"model", "m"}, {"code", "OK"}});
  ASSERT_TRUE(answers.has_value());
  EXPECT_EQ(answers->counter.value, 1);
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
