// The same load for an engine loop in this process: what a server could reach at most.
#ifndef ULTRASKETCH_ENGINE_BENCH_LOAD_ENGINE_LOAD_H_
#define ULTRASKETCH_ENGINE_BENCH_LOAD_ENGINE_LOAD_H_

#include <cstdint>
#include <functional>
#include <stop_token>

#include "absl/status/statusor.h"

#include "engine/bench/load/load_record.h"
#include "engine/bench/load/schedule.h"
#include "engine/bench/load/workload.h"
#include "engine/serving/engine_loop/engine_loop.h"

namespace ultrasketch {

struct EngineLoadOptions {
  float temperature = 0;
  std::stop_token stop;
  // Called on the caller's thread as requests end; null: never.
  std::function<void(int64_t num_ended, double seconds)> progress;
};

// Keeps the plan's number of requests, which must be a closed loop's, in the engine until its end.
// Tokens are noted down on the loop's delivery thread as the engine hands them out. Requests that
// the engine refuses or fails are in the record with its status; CANCELLED when a stop was
// requested.
absl::StatusOr<RunRecord> RunEngineLoad(EngineLoop& loop, const Workload& workload,
                                        const SchedulePlan& plan, const EngineLoadOptions& options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_LOAD_ENGINE_LOAD_H_
