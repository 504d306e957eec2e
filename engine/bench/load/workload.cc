#include "engine/bench/load/workload.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/random.h"
#include "engine/bench/load/random_streams.h"

namespace ultrasketch {

Workload::Workload(WorkloadOptions options, TokenSource source, uint64_t run)
    : options_(std::move(options)),
      source_(std::move(source)),
      token_seed_(RandomWord(options_.seed, kRunStream, run)) {}

LoadRequest Workload::Request(int64_t index) const {
  const auto number = static_cast<uint64_t>(index);
  LoadRequest request;
  request.seed = RandomWord(token_seed_, kSamplingStream, number);
  if (options_.shared_prefix_tokens > 0) {
    const uint64_t prefix = RandomWord(token_seed_, kPrefixChoiceStream, number) %
                            static_cast<uint64_t>(options_.num_prefixes);
    AppendTokens(kPrefixStreams + prefix, options_.shared_prefix_tokens, request.prompt_ids);
  }
  int64_t own_tokens = 0;
  if (options_.trace.empty()) {
    own_tokens = options_.prompt_tokens.Draw(options_.seed, kPromptLengthStream, number);
    request.output_tokens = static_cast<int32_t>(
        options_.output_tokens.Draw(options_.seed, kOutputLengthStream, number));
  } else {
    const TraceEntry& entry = options_.trace[number];
    own_tokens = entry.prompt_tokens;
    request.output_tokens = static_cast<int32_t>(entry.output_tokens);
    for (const uint64_t hash_id : entry.hash_ids) {
      const int64_t count = std::min(kTraceBlockTokens, own_tokens);
      AppendTokens(RandomWord(hash_id, kTraceBlockStream, 0), count, request.prompt_ids);
      own_tokens -= count;
    }
  }
  AppendTokens(kPromptStreams + number, own_tokens, request.prompt_ids);
  return request;
}

void Workload::AppendTokens(uint64_t stream, int64_t count, std::vector<int32_t>& ids) const {
  const size_t text_size = source_.text_ids.size();
  if (text_size > 0) {
    size_t position = RandomWord(token_seed_, stream, 0) % text_size;
    for (int64_t i = 0; i < count; ++i) {
      ids.push_back(source_.text_ids[position]);
      if (++position == text_size) position = 0;
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<int32_t>(RandomWord(token_seed_, stream, static_cast<uint64_t>(i)) %
                                       static_cast<uint64_t>(source_.vocab_size)));
  }
}

absl::Status CheckWorkload(const WorkloadOptions& options, int64_t max_context_tokens) {
  if (options.shared_prefix_tokens < 0 || options.num_prefixes < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected a prefix of at least 0 tokens, and at least 1 prefix, found ",
                     options.num_prefixes, " of ", options.shared_prefix_tokens, " tokens"));
  }
  int64_t prompt = options.prompt_tokens.longest();
  int64_t output = options.output_tokens.longest();
  if (!options.trace.empty()) {
    const auto longest = std::max_element(
        options.trace.begin(), options.trace.end(), [](const TraceEntry& a, const TraceEntry& b) {
          return a.prompt_tokens + a.output_tokens < b.prompt_tokens + b.output_tokens;
        });
    prompt = longest->prompt_tokens;
    output = longest->output_tokens;
  }
  const int64_t total = options.shared_prefix_tokens + prompt + output;
  if (total <= max_context_tokens) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("requests of up to ", options.shared_prefix_tokens, " tokens of shared prefix, ",
                   prompt, " of prompt and ", output, " of completion are ", total,
                   " tokens together: the model's context is ", max_context_tokens));
}

}  // namespace ultrasketch
