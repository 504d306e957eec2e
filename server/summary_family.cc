#include "server/summary_family.h"

#include <prometheus/metric_type.h>

namespace ultrasketch {

SummaryFamily::Summary& SummaryFamily::Add(const Labels& labels) {
  MutexLock lock(mutex_);
  for (Summary& summary : summaries_) {
    if (summary.labels_ == labels) return summary;
  }
  return summaries_.emplace_back(labels);
}

void SummaryFamily::Remove(Summary* summary) {
  MutexLock lock(mutex_);
  summaries_.remove_if([summary](const Summary& each) { return &each == summary; });
}

std::vector<prometheus::MetricFamily> SummaryFamily::Collect() const {
  prometheus::MetricFamily family;
  family.name = name_;
  family.help = help_;
  family.type = prometheus::MetricType::Summary;
  MutexLock lock(mutex_);
  for (const Summary& summary : summaries_) {
    prometheus::ClientMetric& metric = family.metric.emplace_back();
    metric.label = summary.labels_;
    MutexLock summary_lock(summary.mutex_);
    metric.summary.sample_count = summary.count_;
    metric.summary.sample_sum = summary.sum_;
  }
  if (family.metric.empty()) return {};
  return {family};
}

}  // namespace ultrasketch
