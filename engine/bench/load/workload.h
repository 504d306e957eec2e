// What is sent: the prompts and lengths of a run's requests.
#ifndef ULTRASKETCH_ENGINE_BENCH_LOAD_WORKLOAD_H_
#define ULTRASKETCH_ENGINE_BENCH_LOAD_WORKLOAD_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

#include "engine/bench/load/lengths.h"
#include "engine/bench/load/trace.h"

namespace ultrasketch {

struct WorkloadOptions {
  LengthDistribution prompt_tokens = LengthDistribution::Fixed(128);
  LengthDistribution output_tokens = LengthDistribution::Fixed(128);
  std::vector<TraceEntry> trace;  // unless empty, lengths are those of its entries, in order
  // Every prompt begins with one of `num_prefixes` equally likely texts of this many tokens, in
  // front of its own prompt_tokens.
  int64_t shared_prefix_tokens = 0;
  int64_t num_prefixes = 1;
  uint64_t seed = 0;
};

// What prompts are made of: stretches of `text_ids` from random places (its end joined to its
// beginning), or, when it is empty, random ids of a vocabulary of `vocab_size`.
struct TokenSource {
  int32_t vocab_size = 1;
  std::vector<int32_t> text_ids;
};

struct LoadRequest {
  std::vector<int32_t> prompt_ids;
  int32_t output_tokens = 1;  // to be generated, whatever the model's end token
  uint64_t seed = 0;          // of the sampling
};

// Immutable and thread-safe: a request is a function of the options, the source, the run and the
// request's index. Runs of one workload have the same lengths and other tokens, so that none finds
// its prompts in the prefix cache because of an earlier one.
class Workload {
 public:
  Workload(WorkloadOptions options, TokenSource source, uint64_t run);

  // `index` is from 0 on; below the trace's number of entries if there is a trace.
  LoadRequest Request(int64_t index) const;

  const WorkloadOptions& options() const { return options_; }

 private:
  void AppendTokens(uint64_t stream, int64_t count, std::vector<int32_t>& ids) const;

  const WorkloadOptions options_;
  const TokenSource source_;
  const uint64_t token_seed_;
};

// INVALID_ARGUMENT, with both numbers, when a request of the workload may have more tokens, prompt
// and completion together, than `max_context_tokens`; and for prefixes without a number.
absl::Status CheckWorkload(const WorkloadOptions& options, int64_t max_context_tokens);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_LOAD_WORKLOAD_H_
