#include "engine/report/chart_scale.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "absl/strings/str_format.h"

namespace ultrasketch {
namespace {

// The least of 1, 2, 5 times a power of ten that is at least `step`.
double RoundUpStep(double step) {
  const double power = std::pow(10.0, std::floor(std::log10(step)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= step * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

}  // namespace

std::vector<double> AxisTicks::Values() const {
  const auto count = static_cast<int>(std::lround((high - low) / step));
  std::vector<double> values;
  for (int i = 0; i <= count; ++i) values.push_back(low + i * step);
  return values;
}

AxisTicks RoundTicks(double low, double high, int max_steps, bool whole_numbers) {
  if (!std::isfinite(low) || !std::isfinite(high) || low > high) return {};
  if (high - low <= 1e-12 * std::max(std::abs(low), std::abs(high)) || high == low) {
    const double margin = low == 0 ? 1 : std::abs(low) / 2;
    return whole_numbers ? AxisTicks{std::floor(low), std::floor(low) + 1, 1}
                         : RoundTicks(low - margin, low + margin, max_steps);
  }
  double step = RoundUpStep((high - low) / max_steps);
  while (true) {
    if (whole_numbers) step = std::max(1.0, step);
    AxisTicks ticks = {std::floor(low / step + 1e-9) * step, std::ceil(high / step - 1e-9) * step,
                       step};
    // Rounding outwards may have added a step at either end.
    if (std::lround((ticks.high - ticks.low) / step) <= max_steps) return ticks;
    step = RoundUpStep(step * 1.5);
  }
}

std::vector<double> LogTicks(double low, double high, int max_ticks) {
  if (!(low > 0) || !std::isfinite(high) || low > high) return {};
  const auto collect = [&](std::initializer_list<double> factors) {
    std::vector<double> ticks;
    for (auto exponent = static_cast<int>(std::floor(std::log10(low)));
         exponent <= static_cast<int>(std::ceil(std::log10(high))); ++exponent) {
      for (const double factor : factors) {
        const double tick = factor * std::pow(10.0, exponent);
        if (tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9)) ticks.push_back(tick);
      }
    }
    return ticks;
  };
  const auto most = static_cast<size_t>(max_ticks);
  std::vector<double> ticks = collect({1.0, 2.0, 5.0});
  if (ticks.size() > most) ticks = collect({1.0});
  if (ticks.size() >= 3 && ticks.size() <= most) return ticks;
  if (ticks.size() > most) {
    std::vector<double> some;
    const size_t stride = (ticks.size() + most - 1) / most;
    for (size_t i = 0; i < ticks.size(); i += stride) some.push_back(ticks[i]);
    return some;
  }
  ticks.clear();
  for (const double tick : RoundTicks(low, high, max_ticks).Values()) {
    if (tick >= low && tick <= high) ticks.push_back(tick);
  }
  return ticks;
}

std::string TickLabel(double value, double step) {
  const int decimals = std::max(0, static_cast<int>(std::ceil(-std::log10(step) - 1e-9)));
  if (std::abs(value) < step / 2) value = 0;
  return absl::StrFormat("%.*f", decimals, value);
}

std::string ShortNumber(double value) {
  if (!std::isfinite(value)) return "–";
  const double magnitude = std::abs(value);
  if (magnitude != 0 && (magnitude < 1e-4 || magnitude >= 1e6)) {
    return absl::StrFormat("%.2e", value);
  }
  const int digits = magnitude == 0 ? 1 : static_cast<int>(std::floor(std::log10(magnitude))) + 1;
  return absl::StrFormat("%.*f", std::clamp(3 - digits, 0, 6), value);
}

}  // namespace ultrasketch
