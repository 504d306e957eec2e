// A family of Prometheus summaries without quantiles: how often, and how much in all.
#ifndef ULTRASKETCH_SERVER_SUMMARY_FAMILY_H_
#define ULTRASKETCH_SERVER_SUMMARY_FAMILY_H_

#include <cstdint>
#include <list>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include <prometheus/client_metric.h>
#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include "engine/base/mutex.h"

namespace ultrasketch {

// prometheus::Summary keeps what quantiles need also when there are none, which costs a few hundred
// nanoseconds an observation. Thread-safe.
class SummaryFamily final : public prometheus::Collectable {
 public:
  using Labels = std::vector<prometheus::ClientMetric::Label>;

  class Summary {
   public:
    explicit Summary(Labels labels) : labels_(std::move(labels)) {}

    void Observe(double value) {
      MutexLock lock(mutex_);
      ++count_;
      sum_ += value;
    }

   private:
    friend class SummaryFamily;

    const Labels labels_;
    mutable Mutex mutex_;
    uint64_t count_ ABSL_GUARDED_BY(mutex_) = 0;
    double sum_ ABSL_GUARDED_BY(mutex_) = 0;
  };

  SummaryFamily(std::string name, std::string help)
      : name_(std::move(name)), help_(std::move(help)) {}

  // The summary with these labels, made with 0 when it is not there; it lives as long as the
  // family, or until it is removed.
  Summary& Add(const Labels& labels);
  void Remove(Summary* summary);

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const std::string name_;
  const std::string help_;
  mutable Mutex mutex_;
  std::list<Summary> summaries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_SUMMARY_FAMILY_H_
