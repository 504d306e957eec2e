// Recorded traffic: when requests came and how long they were.
#ifndef ULTRASKETCH_ENGINE_BENCH_LOAD_TRACE_H_
#define ULTRASKETCH_ENGINE_BENCH_LOAD_TRACE_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace ultrasketch {

// Tokens of a prompt that one of `hash_ids` stands for.
inline constexpr int64_t kTraceBlockTokens = 512;

struct TraceEntry {
  double arrival_seconds = 0;  // since the first entry's
  int64_t prompt_tokens = 1;
  int64_t output_tokens = 1;
  // Of the prompt's blocks of kTraceBlockTokens, in order; equal ids are equal tokens. Blocks
  // beyond them are the request's own.
  std::vector<uint64_t> hash_ids;
};

// JSON Lines in the format of Mooncake's traces (Qin et al., FAST 2025), which other load
// generators read as well: an object a line with "timestamp" (milliseconds, not decreasing),
// "input_length", "output_length" (tokens, from 1 on) and perhaps "hash_ids" (at most one for each
// block of the input). Other members are ignored, and so are empty lines. INVALID_ARGUMENT, its
// message beginning with "<description>:<line>", for anything else, and for a trace of no entries.
absl::StatusOr<std::vector<TraceEntry>> ParseTrace(std::string_view text,
                                                   std::string_view description);

// ParseTrace of a file; what ReadFile returns.
absl::StatusOr<std::vector<TraceEntry>> ReadTrace(const std::string& path);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_LOAD_TRACE_H_
