// How fast a queue empties, and so when those whom it had no room for should come back.
#ifndef ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_DRAIN_RATE_H_
#define ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_DRAIN_RATE_H_

#include <cstdint>

#include "absl/time/time.h"

namespace ultrasketch {

// Counts what leaves a queue in the time in which something waits there: what passes through an
// empty queue says nothing of how fast a full one would empty. The past fades within kMemory. Pure
// and not thread-safe.
class DrainRate {
 public:
  static constexpr absl::Duration kMemory = absl::Seconds(10);

  // `num_left` have left since the last call, and `num_waiting` wait now.
  void Observe(absl::Time now, int64_t num_left, int64_t num_waiting);

  // Per second; 0 while nothing is known.
  double PerSecond() const;

 private:
  absl::Time last_ = absl::InfinitePast();
  bool was_waiting_ = false;
  double num_left_ = 0;
  double seconds_ = 0;
};

// When the next of those that find `num_waiting` in the queue should try again: evenly spread over
// the time in which these leave it, so that they come as there is room, and not together. `count`
// is how many were told before. Between kMinRetryDelay and kMaxRetryDelay; kUnknownRetryDelay while
// the rate is 0.
absl::Duration SpreadRetryDelay(int64_t num_waiting, double per_second, uint64_t count);
inline constexpr absl::Duration kMinRetryDelay = absl::Milliseconds(100);
inline constexpr absl::Duration kMaxRetryDelay = absl::Seconds(30);
inline constexpr absl::Duration kUnknownRetryDelay = absl::Seconds(1);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_DRAIN_RATE_H_
