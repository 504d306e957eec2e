#include "engine/bench/load/distribution_summary.h"

#include <algorithm>
#include <cmath>

namespace ultrasketch {

void DistributionSamples::Add(double value, int64_t times) {
  if (times > 0) samples_.push_back({value, times});
}

DistributionSummary DistributionSamples::Summarize() {
  DistributionSummary summary;
  if (samples_.empty()) return summary;
  std::sort(samples_.begin(), samples_.end(),
            [](const Sample& a, const Sample& b) { return a.value < b.value; });
  double sum = 0;
  std::vector<int64_t> ends;  // ranks below ends[i] are of samples up to i
  ends.reserve(samples_.size());
  for (const Sample& sample : samples_) {
    sum += sample.value * static_cast<double>(sample.times);
    summary.count += sample.times;
    ends.push_back(summary.count);
  }
  const auto value_at = [&](int64_t rank) {
    const auto end = std::upper_bound(ends.begin(), ends.end(), rank);
    return samples_[static_cast<size_t>(end - ends.begin())].value;
  };
  const auto quantile = [&](double q) {
    const double position = q * static_cast<double>(summary.count - 1);
    const auto rank = static_cast<int64_t>(position);
    const double low = value_at(rank);
    const double high = value_at(std::min(rank + 1, summary.count - 1));
    return low + (high - low) * (position - static_cast<double>(rank));
  };
  summary.mean = sum / static_cast<double>(summary.count);
  summary.p50 = quantile(0.5);
  summary.p90 = quantile(0.9);
  summary.p99 = quantile(0.99);
  summary.max = samples_.back().value;
  for (int percent = 0; percent <= 100; ++percent) {
    summary.percentiles.push_back(quantile(percent / 100.0));
  }
  return summary;
}

}  // namespace ultrasketch
