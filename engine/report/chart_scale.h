// Axes: where ticks go and how their numbers read.
#ifndef ULTRASKETCH_ENGINE_REPORT_CHART_SCALE_H_
#define ULTRASKETCH_ENGINE_REPORT_CHART_SCALE_H_

#include <cstdint>
#include <string>
#include <vector>

namespace ultrasketch {

// A linear axis from `low` to `high`, which are ticks themselves, with a round `step` between.
struct AxisTicks {
  double low = 0;
  double high = 1;
  double step = 1;

  std::vector<double> Values() const;
};

// The fewest round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high] with at
// most `max_steps` steps; steps are whole when `whole_numbers`. Where low and high are the same, or
// are not finite numbers, some axis around them.
AxisTicks RoundTicks(double low, double high, int max_steps, bool whole_numbers = false);

// Ticks of a logarithmic axis within [low, high], both above 0: powers of ten with their 2- and
// 5-fold where there is room for `max_ticks`, or else round numbers evenly apart.
std::vector<double> LogTicks(double low, double high, int max_ticks);

// `value` with as many decimals as tell ticks `step` apart from each other, no "-0".
std::string TickLabel(double value, double step);

// `value` with three significant digits; "–" when it is not finite.
std::string ShortNumber(double value);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_REPORT_CHART_SCALE_H_
