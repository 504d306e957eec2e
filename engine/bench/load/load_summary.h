// A run's figures, reckoned from what was noted down.
#ifndef ULTRASKETCH_ENGINE_BENCH_LOAD_LOAD_SUMMARY_H_
#define ULTRASKETCH_ENGINE_BENCH_LOAD_LOAD_SUMMARY_H_

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"

#include "engine/bench/load/distribution_summary.h"
#include "engine/bench/load/load_record.h"
#include "engine/bench/load/metrics_delta.h"

namespace ultrasketch {

// What a request must keep to count as good: seconds.
struct ServiceObjective {
  double time_to_first_token = std::numeric_limits<double>::infinity();
  double time_per_output_token = std::numeric_limits<double>::infinity();
  double end_to_end = std::numeric_limits<double>::infinity();
};

// Errors of one kind.
struct ErrorCount {
  absl::StatusCode code = absl::StatusCode::kUnknown;
  std::string reason;
  std::string example;  // a status message
  int64_t count = 0;
};

// What happened along the run, from its start on, in slices of equal length.
struct LoadTimeline {
  double slice_seconds = 1;
  std::vector<double> output_tokens_per_second;
  std::vector<double> running_requests;  // sent and not ended, on average
  std::vector<double> errors;            // requests that ended with one
};

// Latencies are of measured requests alone: those that ended well, or, for the time to the first
// token and between tokens, what came before an error. The window begins when the first measured
// request was due. It is as long as the plan's duration, or, when the requests did not last so long
// or there is no duration, until the end of the last one. Rates count what happened in the window,
// warm-up requests that reach into it included.
struct LoadSummary {
  SchedulePlan plan;
  ServiceObjective objective;

  int64_t num_warm_up = 0;
  int64_t num_requests = 0;  // measured
  int64_t num_ok = 0;
  int64_t num_good = 0;   // of these, within the objective
  int64_t num_short = 0;  // of num_ok: with fewer tokens than were asked for
  int64_t num_retries = 0;
  int64_t prompt_tokens = 0;
  int64_t cached_prompt_tokens = 0;
  int64_t output_tokens = 0;
  int64_t num_messages = 0;  // that brought them

  double window_seconds = 0;
  double requests_per_second = 0;
  double good_requests_per_second = 0;
  double prompt_tokens_per_second = 0;  // of requests whose first token came
  double output_tokens_per_second = 0;
  double mean_batch_size = 0;  // of the server's steps, as requests saw it

  DistributionSummary time_to_first_token;
  // Between one token and the next. The time before a message of several tokens is shared evenly by
  // them: messages are not tokens.
  DistributionSummary inter_token;
  DistributionSummary time_per_output_token;  // mean of a request's inter_token
  DistributionSummary longest_gap;  // a request's longest wait for a message but the first
  DistributionSummary end_to_end;
  DistributionSummary queue;    // as the server measured it
  DistributionSummary prefill;  // likewise
  DistributionSummary rejection;
  DistributionSummary lateness;  // of sending: what the load generator itself adds

  std::vector<ErrorCount> errors;  // most frequent first
  LoadTimeline timeline;
  ClientCost client;
  Counters server_counters;  // what the run added to them; empty when they were not read

  // Why the figures may not be what they seem: sentences.
  std::vector<std::string> warnings;
};

LoadSummary SummarizeRun(const RunRecord& run, const ServiceObjective& objective);

// The keys are described in docs/benchmarking.md.
nlohmann::ordered_json ToJson(const LoadSummary& summary);

// "closed", "open" or "trace".
std::string_view LoadLoopName(LoadLoop loop);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_LOAD_LOAD_SUMMARY_H_
