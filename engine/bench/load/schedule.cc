#include "engine/bench/load/schedule.h"

#include <algorithm>

namespace ultrasketch {

std::optional<double> Schedule::NextArrival(double now_seconds) {
  switch (plan_.loop) {
    case LoadLoop::kClosed:
      return now_seconds;
    case LoadLoop::kOpen:
      return arrivals_.Next();
    case LoadLoop::kTrace:
      break;
  }
  const auto index = static_cast<size_t>(num_sent_);
  if (index >= plan_.trace_seconds.size()) return std::nullopt;
  return plan_.trace_seconds[index];
}

std::optional<ScheduledRequest> Schedule::Next(double now_seconds) {
  const int64_t measured_before = num_sent_ - plan_.warm_up_requests;
  if (measured_before >= plan_.measured_requests) return std::nullopt;
  const std::optional<double> intended = NextArrival(now_seconds);
  if (!intended.has_value()) return std::nullopt;
  if (measured_before >= 0) measured_from_ = std::min(measured_from_, *intended);
  if (*intended - measured_from_ >= plan_.duration_seconds) return std::nullopt;
  return ScheduledRequest{num_sent_++, *intended, measured_before >= 0};
}

}  // namespace ultrasketch
