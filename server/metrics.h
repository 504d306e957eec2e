// What the server counts and times, for Prometheus.
//
// Events arrive here as they happen; what has a current value (queues, cache, memory) is read when
// somebody scrapes: see collector.h. Durations are in seconds, sizes in bytes; the label `model` is
// the hosted model's name.
#ifndef ULTRASKETCH_SERVER_METRICS_H_
#define ULTRASKETCH_SERVER_METRICS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include "engine/backends/step_stages.h"
#include "engine/serving/engine_loop/engine_loop.h"
#include "server/call_metrics.h"
#include "server/summary_family.h"

namespace ultrasketch {

struct MetricFamilies;
class ModelSeries;

// Why a call was answered with an error before it reached the engine: label `reason`, in lower
// case.
enum class RejectionReason : uint8_t {
  kInvalidArgument,
  kUnknownModel,
  kQueueFull,
  kQueuedBytesFull,
  kServerFull,
  kClientFull,
  kTooLarge,
  kResponseTooLarge,
  kDraining,
  kClientGone,
  kOther,
};
inline constexpr size_t kNumRejectionReasons = 11;

// The counts of requests by outcome. Every code and reason is there from the start with 0: a rate
// over a counter that is born with its first event misses that event. Thread-safe.
class RequestMetrics {
 public:
  explicit RequestMetrics(ModelSeries& series);

  // A generation or scoring call has been answered with `code`.
  void OnAnswer(absl::StatusCode code);
  void OnRejected(RejectionReason reason);

 private:
  static constexpr size_t kNumCodes = 17;  // OK to UNAUTHENTICATED

  std::array<prometheus::Counter*, kNumCodes> answers_;
  std::array<prometheus::Counter*, kNumRejectionReasons> rejections_;
};

// One model's metrics. Thread-safe.
class ModelMetrics final : public EngineObserver {
 public:
  explicit ModelMetrics(std::unique_ptr<ModelSeries> series);
  ~ModelMetrics() override;

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
  const std::unique_ptr<ModelSeries> series_;  // owns what is below
  RequestMetrics requests_;
  prometheus::Histogram& time_to_first_token_;
  prometheus::Histogram& inter_token_latency_;
  prometheus::Histogram& request_duration_;
  prometheus::Histogram& queue_duration_;
  // Of the steps that computed the same.
  struct Phase {
    Phase(ModelSeries& series, const std::string& phase);
    prometheus::Histogram& duration;
    std::array<SummaryFamily::Summary*, kNumStepStages> stages;
  };
  Phase prefill_;
  Phase decode_;
  Phase mixed_;
  prometheus::Counter& prompt_tokens_;
  prometheus::Counter& generated_tokens_;
};

// Connections of the gRPC server. Thread-safe.
struct TransportMetrics {
  explicit TransportMetrics(prometheus::Registry& registry);

  prometheus::Gauge& connections;  // open now
  // Closed as they came: too many of them, or no file descriptor left.
  prometheus::Counter& refused_for_limit;
  prometheus::Counter& refused_for_descriptors;

  // A call was refused before any service saw it: UNAUTHENTICATED or PERMISSION_DENIED.
  void OnRefusedCall(absl::StatusCode code);

 private:
  TransportMetrics(prometheus::Gauge& open,
                   prometheus::Family<prometheus::Counter>& connections_refused,
                   prometheus::Family<prometheus::Counter>& calls_refused);

  prometheus::Counter& unauthenticated_;
  prometheus::Counter& permission_denied_;
};

// The registry and its families. Thread-safe.
class Metrics {
 public:
  Metrics();
  ~Metrics();

  // A model's metrics; they may outlive this object. Those of one name count together; with the
  // last of them the name's series go, so that names that come and go leave nothing.
  std::shared_ptr<ModelMetrics> ForModel(const std::string& name);

  // Requests that name no hosted model. Clients' own names never become labels.
  RequestMetrics& unattributed() { return unattributed_; }

  TransportMetrics& transport() { return transport_; }
  CallMetrics& calls() { return calls_; }

  std::shared_ptr<prometheus::Collectable> collectable() const;

 private:
  std::shared_ptr<MetricFamilies> families_;
  std::unique_ptr<ModelSeries> no_model_;
  RequestMetrics unattributed_;
  TransportMetrics transport_;
  CallMetrics calls_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_METRICS_H_
