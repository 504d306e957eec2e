// Whether a request can be served at all.
#ifndef ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_VALIDATE_REQUEST_H_
#define ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_VALIDATE_REQUEST_H_

#include <cstdint>
#include <string_view>

#include "absl/status/status.h"

#include "engine/serving/engine_loop/engine_loop.h"
#include "engine/serving/scheduler/scheduler.h"

namespace ultrasketch {

inline constexpr int kMaxStopStrings = 16;
inline constexpr int kMaxStopStringBytes = 1024;
inline constexpr int kMaxStopTokenIds = 1024;
inline constexpr int kMaxLogprobs = 20;
inline constexpr int kMaxCompletions = 128;

struct RequestLimits {
  int32_t vocab_size = 0;
  int32_t max_queued_requests = 0;
  SchedulerOptions scheduler;
};

// Errors here are INVALID_ARGUMENT, the message starting with the name of the field in
// GenerateRequest (proto/ultrasketch/v1/generation.proto) and ": ".

absl::Status ValidateRequest(const GenerationRequest& request, const RequestLimits& limits);

// The part of ValidateRequest that asks whether so many completions could ever wait.
absl::Status ValidateNumCompletions(int32_t num_completions, const RequestLimits& limits);

// The part of ValidateRequest that needs no prompt, nor what there is room for: the ranges of the
// options, and whether they leave a token to choose. A text need not be tokenized to fail here.
absl::Status ValidateOptions(const GenerationRequest& request, int32_t vocab_size);

// The parts of ValidateOptions that a caller may want before it copies what a client has sent, or
// under another field's name.
absl::Status ValidateStopCounts(int64_t num_stop_strings, int64_t num_stop_token_ids);
absl::Status ValidateLogprobs(std::string_view field, int32_t num_logprobs);  // -1: none

// Most tokens whose keys and values a completion of a valid request needs at a time: the last token
// is never computed.
int64_t MaxCachedTokens(const GenerationRequest& request, int64_t max_context_tokens);

// What a request counts for in EngineLoopOptions::max_queued_tokens.
inline int64_t NumQueuedTokens(const GenerationRequest& request) {
  return request.num_completions * static_cast<int64_t>(request.prompt_ids.size());
}

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_VALIDATE_REQUEST_H_
