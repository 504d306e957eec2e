// Quantiles of measured values.
#ifndef ULTRASKETCH_ENGINE_BENCH_LOAD_DISTRIBUTION_SUMMARY_H_
#define ULTRASKETCH_ENGINE_BENCH_LOAD_DISTRIBUTION_SUMMARY_H_

#include <cstdint>
#include <vector>

namespace ultrasketch {

// All 0 and empty when there are no values.
struct DistributionSummary {
  int64_t count = 0;
  double mean = 0;
  double p50 = 0;
  double p90 = 0;
  double p99 = 0;
  double max = 0;
  std::vector<double> percentiles;  // 0 to 100, 101 values: the distribution for a plot
};

// Values, each as often as it counts. Not thread-safe.
class DistributionSamples {
 public:
  void Add(double value, int64_t times = 1);

  // Exact: quantiles interpolate between the two closest ranks, as NumPy does by default. Sorts the
  // values; O(n log n).
  DistributionSummary Summarize();

 private:
  struct Sample {
    double value;
    int64_t times;
  };
  std::vector<Sample> samples_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_LOAD_DISTRIBUTION_SUMMARY_H_
