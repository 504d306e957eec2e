// The results of a load as one HTML page that needs nothing else.
#ifndef ULTRASKETCH_ENGINE_BENCH_LOAD_LOAD_PAGE_H_
#define ULTRASKETCH_ENGINE_BENCH_LOAD_LOAD_PAGE_H_

#include <string>
#include <vector>

#include "engine/bench/load/load_summary.h"

namespace ultrasketch {

// "closed loop, 64 in flight", "open loop, 5/s poisson", "trace".
std::string NameLoad(const SchedulePlan& plan);

// `runs` is not empty. Several are compared: latencies against throughput. More runs than there are
// colours for are thinned out in the plots of distributions.
std::string LoadHtml(const std::string& title, const std::string& subtitle,
                     const std::vector<LoadSummary>& runs);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_LOAD_LOAD_PAGE_H_
