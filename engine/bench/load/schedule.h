// When requests of a run are sent, and which of them are measured.
#ifndef ULTRASKETCH_ENGINE_BENCH_LOAD_SCHEDULE_H_
#define ULTRASKETCH_ENGINE_BENCH_LOAD_SCHEDULE_H_

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "engine/bench/load/arrivals.h"

namespace ultrasketch {

enum class LoadLoop : uint8_t {
  kClosed,  // a fixed number of requests in flight: the next is sent when one ends
  kOpen,    // requests arrive at a rate, whatever became of those before
  kTrace,   // an open loop with recorded arrivals
};

struct SchedulePlan {
  LoadLoop loop = LoadLoop::kClosed;
  int64_t concurrency = 1;                             // of kClosed
  double rate = 1;                                     // of kOpen: requests a second
  ArrivalProcess arrivals = ArrivalProcess::kPoisson;  // of kOpen
  std::vector<double> trace_seconds;                   // of kTrace: arrivals, not decreasing
  uint64_t seed = 0;

  // The first requests warm the server up: they are sent like the others, which follow without a
  // pause, and are in no figure but throughput.
  int64_t warm_up_requests = 0;
  // The run sends so many more, and stops sending so long after the first of them.
  int64_t measured_requests = std::numeric_limits<int64_t>::max();
  double duration_seconds = std::numeric_limits<double>::infinity();
};

struct ScheduledRequest {
  int64_t index = 0;
  // Seconds since the start of the run: when it should be sent, which is what latencies are
  // measured from.
  double intended_seconds = 0;
  bool is_measured = true;
};

// Not thread-safe.
class Schedule {
 public:
  explicit Schedule(const SchedulePlan& plan)
      : plan_(plan), arrivals_(plan.arrivals, plan.rate, plan.seed) {}

  // The next request of the run; nullopt when all have been sent. In a closed loop it is due at
  // `now_seconds`, which does not matter in an open one.
  std::optional<ScheduledRequest> Next(double now_seconds);

  const SchedulePlan& plan() const { return plan_; }

 private:
  // nullopt when the trace has ended.
  std::optional<double> NextArrival(double now_seconds);

  const SchedulePlan plan_;
  Arrivals arrivals_;
  int64_t num_sent_ = 0;
  double measured_from_ = std::numeric_limits<double>::infinity();
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_LOAD_SCHEDULE_H_
