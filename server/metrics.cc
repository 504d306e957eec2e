#include "server/metrics.h"

#include <functional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include <prometheus/registry.h>

namespace ultrasketch {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Histogram;

using Buckets = Histogram::BucketBoundaries;

// Steps of about 1.5, with 1, 2, 5, 10, 20, 50 ... exact. prometheus-cpp prints sixteen digits,
// with which 75 us, which is no double, is 7.499999999999999e-05: there are 72 us instead.
Buckets LatencyBuckets() {
  return {0.00002, 0.00003, 0.00005, 0.000072, 0.0001, 0.00015, 0.0002, 0.0003, 0.0005,
          0.00075, 0.001,   0.0015,  0.002,    0.003,  0.005,   0.0075, 0.01,   0.015,
          0.02,    0.03,    0.05,    0.075,    0.1,    0.15,    0.2,    0.3,    0.5,
          0.75,    1,       1.5,     2,        3,      5};
}

Buckets TimeToFirstTokenBuckets() {
  Buckets buckets = LatencyBuckets();
  for (const double bound : {7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0}) buckets.push_back(bound);
  return buckets;
}

Buckets RequestDurationBuckets() {
  Buckets buckets = TimeToFirstTokenBuckets();
  for (const double bound : {90.0, 120.0, 180.0, 300.0, 450.0, 600.0}) buckets.push_back(bound);
  return buckets;
}

constexpr std::array<const char*, kNumRejectionReasons> kRejectionReasons = {
    "invalid_argument",  // kInvalidArgument ...
    "unknown_model",    "queue_full",         "queued_bytes_full", "server_full", "client_full",
    "too_large",        "response_too_large", "draining",          "client_gone", "other"};

constexpr std::array<const char*, kNumStepStages> kStepStageNames = {
    "sketch", "gemm", "attention", "head", "sampling", "other"};  // as StepStage has them

}  // namespace

struct MetricFamilies final : prometheus::Collectable {
  MetricFamilies()
      : requests(NewCounter("ultrasketch_requests_total",
                            "Generation and scoring calls answered, by gRPC status code.")),
        rejected_requests(NewCounter("ultrasketch_rejected_requests_total",
                                     "Calls refused before they reached the engine, by reason.")),
        prompt_tokens(
            NewCounter("ultrasketch_prompt_tokens_total", "Tokens of prompts that were computed.")),
        generated_tokens(NewCounter("ultrasketch_generated_tokens_total", "Tokens generated.")),
        time_to_first_token(NewHistogram("ultrasketch_time_to_first_token_seconds",
                                         "Arrival of a request to its first token.")),
        inter_token_latency(NewHistogram("ultrasketch_inter_token_latency_seconds",
                                         "Between consecutive tokens of a completion.")),
        request_duration(
            NewHistogram("ultrasketch_request_duration_seconds", "Arrival of a call to its end.")),
        queue_duration(NewHistogram("ultrasketch_queue_duration_seconds",
                                    "Arrival of a request to the first step that serves it.")),
        step_duration(NewHistogram("ultrasketch_step_duration_seconds",
                                   "Steps of the engine, by what they computed.")),
        step_stage("ultrasketch_step_stage_seconds",
                   "Parts of those steps of the engine that were measured, by phase of the step; "
                   "they add up to the steps.") {}

  Family<Counter>& NewCounter(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
  }
  Family<Histogram>& NewHistogram(const char* name, const char* help) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
  }

  std::vector<prometheus::MetricFamily> Collect() const override {
    std::vector<prometheus::MetricFamily> collected = registry.Collect();
    for (prometheus::MetricFamily& family : step_stage.Collect()) {
      collected.push_back(std::move(family));
    }
    return collected;
  }

  // What a name's series are, as long as a ModelSeries has them.
  struct Series {
    int num_users = 0;
    absl::flat_hash_map<const void*, std::function<void()>> removers;  // by the metric
  };

  absl::Mutex mutex;
  absl::flat_hash_map<std::string, Series> series_of_model ABSL_GUARDED_BY(mutex);
  prometheus::Registry registry;  // owns the families that are references
  Family<Counter>& requests;
  Family<Counter>& rejected_requests;
  Family<Counter>& prompt_tokens;
  Family<Counter>& generated_tokens;
  Family<Histogram>& time_to_first_token;
  Family<Histogram>& inter_token_latency;
  Family<Histogram>& request_duration;
  Family<Histogram>& queue_duration;
  Family<Histogram>& step_duration;
  SummaryFamily step_stage;
};

// Adds series of one model to the families, and removes them when it is the last of the model's.
class ModelSeries {
 public:
  ModelSeries(std::shared_ptr<MetricFamilies> families, std::string model)
      : families_(std::move(families)), model_(std::move(model)) {
    absl::MutexLock lock(&families_->mutex);
    ++families_->series_of_model[model_].num_users;
  }
  ~ModelSeries() {
    absl::MutexLock lock(&families_->mutex);
    const auto found = families_->series_of_model.find(model_);
    if (--found->second.num_users > 0) return;
    for (const auto& [metric, remove] : found->second.removers) remove();
    families_->series_of_model.erase(found);
  }
  ModelSeries(const ModelSeries&) = delete;
  ModelSeries& operator=(const ModelSeries&) = delete;

  MetricFamilies& families() { return *families_; }

  // `labels` beside the model's name.
  template <typename T, typename... Arguments>
  T& Add(Family<T>& family, prometheus::Labels labels, Arguments&&... arguments) {
    labels.emplace("model", model_);
    return Keep(family, family.Add(labels, std::forward<Arguments>(arguments)...));
  }
  SummaryFamily::Summary& Add(SummaryFamily& family, SummaryFamily::Labels labels) {
    labels.insert(labels.begin(), {"model", model_});
    return Keep(family, family.Add(labels));
  }

 private:
  template <typename AnyFamily, typename T>
  T& Keep(AnyFamily& family, T& metric) {
    absl::MutexLock lock(&families_->mutex);
    families_->series_of_model.find(model_)->second.removers.try_emplace(
        &metric, [&family, &metric] { family.Remove(&metric); });
    return metric;
  }

  const std::shared_ptr<MetricFamilies> families_;
  const std::string model_;
};

RequestMetrics::RequestMetrics(ModelSeries& series) {
  for (size_t i = 0; i < kNumCodes; ++i) {
    const std::string code = absl::StatusCodeToString(static_cast<absl::StatusCode>(i));
    answers_[i] = &series.Add(series.families().requests, {{"code", code}});
  }
  for (size_t i = 0; i < kNumRejectionReasons; ++i) {
    rejections_[i] =
        &series.Add(series.families().rejected_requests, {{"reason", kRejectionReasons[i]}});
  }
}

void RequestMetrics::OnAnswer(absl::StatusCode code) {
  size_t index = static_cast<size_t>(code);
  if (index >= kNumCodes) index = static_cast<size_t>(absl::StatusCode::kUnknown);
  answers_[index]->Increment();
}

void RequestMetrics::OnRejected(RejectionReason reason) {
  rejections_[static_cast<size_t>(reason)]->Increment();
}

ModelMetrics::ModelMetrics(std::unique_ptr<ModelSeries> series)
    : series_(std::move(series)),
      requests_(*series_),
      time_to_first_token_(
          series_->Add(series_->families().time_to_first_token, {}, TimeToFirstTokenBuckets())),
      inter_token_latency_(
          series_->Add(series_->families().inter_token_latency, {}, LatencyBuckets())),
      request_duration_(
          series_->Add(series_->families().request_duration, {}, RequestDurationBuckets())),
      queue_duration_(
          series_->Add(series_->families().queue_duration, {}, TimeToFirstTokenBuckets())),
      prefill_(*series_, "prefill"),
      decode_(*series_, "decode"),
      mixed_(*series_, "mixed"),
      prompt_tokens_(series_->Add(series_->families().prompt_tokens, {})),
      generated_tokens_(series_->Add(series_->families().generated_tokens, {})) {}

ModelMetrics::~ModelMetrics() = default;

ModelMetrics::Phase::Phase(ModelSeries& series, const std::string& phase)
    : duration(series.Add(series.families().step_duration, {{"phase", phase}}, LatencyBuckets())) {
  for (size_t i = 0; i < kNumStepStages; ++i) {
    const SummaryFamily::Labels labels = {{"phase", phase}, {"stage", kStepStageNames[i]}};
    stages[i] = &series.Add(series.families().step_stage, labels);
  }
}

void ModelMetrics::OnStep(const StepReport& report) {
  Phase& phase = report.num_decode_tokens == 0    ? prefill_
                 : report.num_prefill_tokens == 0 ? decode_
                                                  : mixed_;
  phase.duration.Observe(absl::ToDoubleSeconds(report.duration));
  if (!report.stages.has_value()) return;
  for (size_t i = 0; i < kNumStepStages; ++i) {
    const absl::Duration duration = (*report.stages)[static_cast<StepStage>(i)];
    phase.stages[i]->Observe(absl::ToDoubleSeconds(duration));
  }
}

void ModelMetrics::OnFirstToken(absl::Duration since_arrival) {
  time_to_first_token_.Observe(absl::ToDoubleSeconds(since_arrival));
}

void ModelMetrics::OnInterToken(absl::Duration since_last) {
  inter_token_latency_.Observe(absl::ToDoubleSeconds(since_last));
}

void ModelMetrics::OnScheduled(absl::Duration queued) {
  queue_duration_.Observe(absl::ToDoubleSeconds(queued));
}

void ModelMetrics::OnRequestDuration(absl::Duration duration) {
  request_duration_.Observe(absl::ToDoubleSeconds(duration));
}

void ModelMetrics::OnPromptTokens(int64_t num_tokens) {
  prompt_tokens_.Increment(static_cast<double>(num_tokens));
}

void ModelMetrics::OnGeneratedTokens(int64_t num_tokens) {
  generated_tokens_.Increment(static_cast<double>(num_tokens));
}

TransportMetrics::TransportMetrics(prometheus::Registry& registry)
    : TransportMetrics(prometheus::BuildGauge()
                           .Name("ultrasketch_connections")
                           .Help("Open connections of the gRPC server.")
                           .Register(registry)
                           .Add({}),
                       prometheus::BuildCounter()
                           .Name("ultrasketch_refused_connections_total")
                           .Help("Connections that were closed as they came, by reason.")
                           .Register(registry),
                       prometheus::BuildCounter()
                           .Name("ultrasketch_refused_calls_total")
                           .Help("Calls refused for their token or what they may not do, by code.")
                           .Register(registry)) {}

TransportMetrics::TransportMetrics(prometheus::Gauge& open,
                                   prometheus::Family<prometheus::Counter>& connections_refused,
                                   prometheus::Family<prometheus::Counter>& calls_refused)
    : connections(open),
      refused_for_limit(connections_refused.Add({{"reason", "max_connections"}})),
      refused_for_descriptors(connections_refused.Add({{"reason", "file_descriptors"}})),
      unauthenticated_(calls_refused.Add({{"code", "UNAUTHENTICATED"}})),
      permission_denied_(calls_refused.Add({{"code", "PERMISSION_DENIED"}})) {}

void TransportMetrics::OnRefusedCall(absl::StatusCode code) {
  (code == absl::StatusCode::kUnauthenticated ? unauthenticated_ : permission_denied_).Increment();
}

Metrics::Metrics()
    : families_(std::make_shared<MetricFamilies>()),
      no_model_(std::make_unique<ModelSeries>(families_, "")),
      unattributed_(*no_model_),
      transport_(families_->registry),
      calls_(families_->registry) {}

Metrics::~Metrics() = default;

std::shared_ptr<prometheus::Collectable> Metrics::collectable() const { return families_; }

std::shared_ptr<ModelMetrics> Metrics::ForModel(const std::string& name) {
  return std::make_shared<ModelMetrics>(std::make_unique<ModelSeries>(families_, name));
}

}  // namespace ultrasketch
