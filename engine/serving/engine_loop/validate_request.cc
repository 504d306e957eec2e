#include "engine/serving/engine_loop/validate_request.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"

#include "engine/base/status.h"
#include "engine/base/strings.h"

namespace ultrasketch {
namespace {

template <typename... Parts>
absl::Status Invalid(std::string_view field, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(A(field), ": ", parts...));
}

absl::Status CheckIds(std::string_view field, absl::Span<const int32_t> ids, int32_t vocab_size) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size) {
      return Invalid(field, "id ", ids[i], " at index ", i, " is outside the vocabulary of ",
                     vocab_size, " tokens");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckStop(const GenerationRequest& request, int32_t vocab_size) {
  US_RETURN_IF_ERROR(ValidateStopCounts(static_cast<int64_t>(request.stop.size()),
                                        static_cast<int64_t>(request.stop_token_ids.size())));
  for (size_t i = 0; i < request.stop.size(); ++i) {
    const std::string& stop = request.stop[i];
    if (stop.empty()) return Invalid("stop", "string ", i, " is empty");
    if (stop.size() > kMaxStopStringBytes) {
      return Invalid("stop", "string ", i, " has ", stop.size(), " bytes; at most ",
                     kMaxStopStringBytes, " are allowed");
    }
    if (!IsValidUtf8(stop)) return Invalid("stop", "string ", i, " is not UTF-8");
  }
  US_RETURN_IF_ERROR(CheckIds("stop_token_ids", request.stop_token_ids, vocab_size));
  return CheckIds("eos_token_ids", request.eos_token_ids, vocab_size);
}

// End tokens are forbidden before min_tokens: some token has to be none. All ids are valid.
absl::Status CheckLeavesATokenToChoose(const GenerationRequest& request, int32_t vocab_size) {
  const size_t num_ids = request.stop_token_ids.size() + request.eos_token_ids.size();
  if (request.min_tokens == 0 || num_ids < static_cast<size_t>(vocab_size)) return absl::OkStatus();
  absl::flat_hash_set<int32_t> end_ids(request.stop_token_ids.begin(),
                                       request.stop_token_ids.end());
  end_ids.insert(request.eos_token_ids.begin(), request.eos_token_ids.end());
  if (end_ids.size() < static_cast<size_t>(vocab_size)) return absl::OkStatus();
  return Invalid("min_tokens", request.min_tokens, " leaves no token to choose: all ", vocab_size,
                 " tokens of the vocabulary end the text, by stop_token_ids or as the model's end "
                 "tokens, and none of these may come before min_tokens");
}

absl::Status CheckLength(const GenerationRequest& request, const RequestLimits& limits) {
  const int64_t num_prompt_tokens = static_cast<int64_t>(request.prompt_ids.size());
  const int64_t context = limits.scheduler.max_context_tokens;
  if (request.max_tokens == 0) {
    if (num_prompt_tokens < 2) {
      return Invalid("input", "one token: there is none after it to be scored");
    }
    if (num_prompt_tokens > context) {
      return Invalid("input", num_prompt_tokens, " tokens exceed the model's context of ", context);
    }
  } else if (num_prompt_tokens > context - 1) {
    return Invalid("input", num_prompt_tokens, " tokens exceed the model's context of ", context,
                   ", of which one is left for the completion");
  }
  if (const absl::Status status =
          Scheduler::CheckFits(limits.scheduler, MaxCachedTokens(request, context));
      !status.ok()) {
    return Invalid("max_tokens", "with a prompt of ", num_prompt_tokens, " tokens, ",
                   request.max_tokens, " is too many: ", status.message());
  }
  return absl::OkStatus();
}

}  // namespace

int64_t MaxCachedTokens(const GenerationRequest& request, int64_t max_context_tokens) {
  const int64_t num_tokens = static_cast<int64_t>(request.prompt_ids.size()) + request.max_tokens;
  return std::min(num_tokens, max_context_tokens) - 1;
}

absl::Status ValidateStopCounts(int64_t num_stop_strings, int64_t num_stop_token_ids) {
  if (num_stop_strings > kMaxStopStrings) {
    return Invalid("stop", num_stop_strings, " strings; at most ", kMaxStopStrings, " are allowed");
  }
  if (num_stop_token_ids > kMaxStopTokenIds) {
    return Invalid("stop_token_ids", num_stop_token_ids, " ids; at most ", kMaxStopTokenIds,
                   " are allowed");
  }
  return absl::OkStatus();
}

absl::Status ValidateLogprobs(std::string_view field, int32_t num_logprobs) {
  if (num_logprobs >= -1 && num_logprobs <= kMaxLogprobs) return absl::OkStatus();
  return Invalid(field, num_logprobs, " is outside [0, ", kMaxLogprobs, "]");
}

absl::Status ValidateOptions(const GenerationRequest& request, int32_t vocab_size) {
  const bool scores_only = request.max_tokens == 0 && request.prompt_logprobs >= 0;
  if (request.max_tokens < 1 && !scores_only) {
    return Invalid("max_tokens", request.max_tokens, " is less than 1");
  }
  if (request.min_tokens < 0 || request.min_tokens > request.max_tokens) {
    return Invalid("min_tokens", request.min_tokens,
                   " is outside [0, max_tokens = ", request.max_tokens, "]");
  }
  if (request.num_completions < 1 || request.num_completions > kMaxCompletions) {
    return Invalid("n", request.num_completions, " is outside [1, ", kMaxCompletions, "]");
  }
  US_RETURN_IF_ERROR(ValidateLogprobs("logprobs", request.sampling.num_logprobs));
  US_RETURN_IF_ERROR(ValidateLogprobs("prompt_logprobs", request.prompt_logprobs));
  US_RETURN_IF_ERROR(ValidateSamplingParams(request.sampling, vocab_size));
  US_RETURN_IF_ERROR(CheckStop(request, vocab_size));
  return CheckLeavesATokenToChoose(request, vocab_size);
}

absl::Status ValidateNumCompletions(int32_t num_completions, const RequestLimits& limits) {
  if (num_completions <= limits.max_queued_requests) return absl::OkStatus();
  return Invalid("n", num_completions, " is outside [1, ", limits.max_queued_requests,
                 "]: as many completions may wait");
}

absl::Status ValidateRequest(const GenerationRequest& request, const RequestLimits& limits) {
  US_RETURN_IF_ERROR(ValidateOptions(request, limits.vocab_size));
  if (request.prompt_ids.empty()) return Invalid("input", "the prompt has no tokens");
  US_RETURN_IF_ERROR(CheckLength(request, limits));
  US_RETURN_IF_ERROR(CheckIds("token_ids", request.prompt_ids, limits.vocab_size));
  return ValidateNumCompletions(request.num_completions, limits);
}

}  // namespace ultrasketch
