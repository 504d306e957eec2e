// How far a server's counters went during a run.
#ifndef ULTRASKETCH_ENGINE_BENCH_LOAD_METRICS_DELTA_H_
#define ULTRASKETCH_ENGINE_BENCH_LOAD_METRICS_DELTA_H_

#include <map>
#include <string>
#include <string_view>

namespace ultrasketch {

// Counters by sample, such as `ultrasketch_preemptions_total{model="small"}`.
using Counters = std::map<std::string, double>;

// The counters of a page in Prometheus's text format: samples whose name ends with _total, _sum or
// _count. Lines that are none are ignored.
Counters ParseCounters(std::string_view page);

// What was added to each counter that grew; one that `before` does not have began at 0.
Counters AddedBetween(const Counters& before, const Counters& after);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_LOAD_METRICS_DELTA_H_
