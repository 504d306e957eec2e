// What the load generator notes down while a run goes on. Times are seconds since the run's start.
#ifndef ULTRASKETCH_ENGINE_BENCH_LOAD_LOAD_RECORD_H_
#define ULTRASKETCH_ENGINE_BENCH_LOAD_LOAD_RECORD_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

#include "engine/bench/load/schedule.h"

namespace ultrasketch {

// A message of a stream that brought tokens.
struct TokenMessage {
  float gap_seconds = 0;  // since the one before; of the first, since the request was due
  int32_t num_tokens = 0;
};

// One request, from when it was due to its end. With retries it is one request still: it ends with
// its last attempt.
struct LoadRecord {
  bool is_measured = true;
  double intended_seconds = 0;
  double sent_seconds = 0;  // its first attempt
  double end_seconds = 0;
  std::vector<TokenMessage> messages;
  int32_t wanted_tokens = 0;
  int32_t num_retries = 0;

  // As the server tells; 0 when it failed.
  int32_t prompt_tokens = 0;
  int32_t cached_prompt_tokens = 0;
  double queue_seconds = 0;
  double prefill_seconds = 0;
  double mean_batch_size = 0;

  absl::StatusCode code = absl::StatusCode::kOk;
  std::string reason;   // google.rpc.ErrorInfo's
  std::string message;  // of the status

  double last_message_seconds = 0;

  // Tokens have come. `now_seconds` does not decrease.
  void AddTokens(double now_seconds, int32_t num_tokens) {
    const double since = messages.empty() ? intended_seconds : last_message_seconds;
    messages.push_back({static_cast<float>(now_seconds - since), num_tokens});
    last_message_seconds = now_seconds;
  }
};

// An attempt that the server refused: RESOURCE_EXHAUSTED before any token.
struct RejectionRecord {
  bool is_measured = true;
  double end_seconds = 0;
  double latency_seconds = 0;  // from sending it
};

// What the load generator itself took.
struct ClientCost {
  bool includes_engine = false;  // which ran in the same process
  double wall_seconds = 0;
  double cpu_seconds = 0;           // of the process
  double busiest_thread_share = 0;  // CPU time over wall time of its busiest thread
};

struct RunRecord {
  SchedulePlan plan;
  std::vector<LoadRecord> requests;
  std::vector<RejectionRecord> rejections;
  ClientCost client;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_LOAD_LOAD_RECORD_H_
