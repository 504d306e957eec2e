// What the server counts and times, for Prometheus.
//
// Events arrive here as they happen; what has a current value (queues, cache, memory) is read when
// somebody scrapes: see collector.h. Durations are in seconds, sizes in bytes; the label `model` is
// the hosted model's name.
#ifndef ULTRASKETCH_SERVER_METRICS_H_
#define ULTRASKETCH_SERVER_METRICS_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include "engine/serving/engine_loop/engine_loop.h"

namespace ultrasketch {

struct MetricFamilies;

// The counts of requests by outcome. Thread-safe.
class RequestMetrics {
 public:
  RequestMetrics(std::shared_ptr<MetricFamilies> families, std::string model);

  // `num_answers` generation or scoring calls have been answered with `code`. 0 only makes the
  // counter visible: a rate over a counter that is born with its first event misses that event.
  void OnAnswers(absl::StatusCode code, int num_answers);

  // A call was answered with an error before it reached the engine. `reason` is a constant:
  // "invalid_argument", "unknown_model", "queue_full", "draining".
  void OnRejected(std::string_view reason);

 private:
  static constexpr size_t kNumCodes = 17;  // OK to UNAUTHENTICATED

  std::shared_ptr<MetricFamilies> families_;
  const std::string model_;
  // Made at the first use of each, so that a scrape does not list codes that never occurred.
  std::array<std::atomic<prometheus::Counter*>, kNumCodes> answers_ = {};
};

// One model's metrics. Thread-safe.
class ModelMetrics final : public EngineObserver {
 public:
  ModelMetrics(const std::shared_ptr<MetricFamilies>& families, const std::string& model);

  void OnStep(const StepReport& report) override;
  void OnFirstToken(absl::Duration since_arrival) override;
  void OnInterToken(absl::Duration since_last) override;
  void OnScheduled(absl::Duration queued) override;

  // From the call's arrival at the server to its last event.
  void OnRequestDuration(absl::Duration duration);
  // Once for each request whose prompt was computed.
  void OnPromptTokens(int64_t num_tokens);
  void OnGeneratedTokens(int64_t num_tokens);

  RequestMetrics& requests() { return requests_; }

 private:
  RequestMetrics requests_;
  prometheus::Histogram& time_to_first_token_;
  prometheus::Histogram& inter_token_latency_;
  prometheus::Histogram& request_duration_;
  prometheus::Histogram& queue_duration_;
  prometheus::Histogram& prefill_step_duration_;
  prometheus::Histogram& decode_step_duration_;
  prometheus::Histogram& mixed_step_duration_;
  prometheus::Counter& prompt_tokens_;
  prometheus::Counter& generated_tokens_;
};

// The registry and its families. Thread-safe.
class Metrics {
 public:
  Metrics();

  // A new model's metrics; they may outlive this object. Each name once.
  std::shared_ptr<ModelMetrics> ForModel(const std::string& name);

  // Requests that name no hosted model. Clients' own names never become labels.
  RequestMetrics& unattributed() { return unattributed_; }

  std::shared_ptr<prometheus::Collectable> collectable() const { return registry_; }

 private:
  std::shared_ptr<prometheus::Registry> registry_;
  std::shared_ptr<MetricFamilies> families_;
  RequestMetrics unattributed_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_METRICS_H_
