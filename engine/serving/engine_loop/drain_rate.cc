#include "engine/serving/engine_loop/drain_rate.h"

#include <algorithm>
#include <cmath>

namespace ultrasketch {

void DrainRate::Observe(absl::Time now, int64_t num_left, int64_t num_waiting) {
  if (was_waiting_) {
    const double elapsed = std::max(0.0, absl::ToDoubleSeconds(now - last_));
    const double kept = std::exp(-elapsed / absl::ToDoubleSeconds(kMemory));
    num_left_ = num_left_ * kept + static_cast<double>(num_left);
    seconds_ = seconds_ * kept + elapsed;
  }
  last_ = now;
  was_waiting_ = num_waiting > 0;
}

double DrainRate::PerSecond() const { return seconds_ > 0 ? num_left_ / seconds_ : 0; }

absl::Duration SpreadRetryDelay(int64_t num_waiting, double per_second, uint64_t count) {
  if (!(per_second > 0)) return kUnknownRetryDelay;
  // Multiples of the golden ratio are spread evenly however many there are.
  const double place = std::fmod(static_cast<double>(count % (1 << 20)) * 0.6180339887498949, 1.0);
  const double seconds = (1 + place * static_cast<double>(num_waiting)) / per_second;
  const double bounded = std::min(seconds, absl::ToDoubleSeconds(kMaxRetryDelay));
  return std::max(absl::Seconds(bounded), kMinRetryDelay);
}

}  // namespace ultrasketch
