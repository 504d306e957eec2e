#include "server/response_limit.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace ultrasketch {
namespace {

// A TokenLogprob in its list: length, token_id, logprob, empty text and bytes.
constexpr int64_t kMinLogprobBytes = 2 + 2 + 5 + 2 + 2;

// `num_tokens` TokenLogprobs, each with so many alternatives; -1: none.
int64_t MinLogprobsBytes(int64_t num_tokens, int32_t num_top) {
  if (num_top < 0) return 0;
  constexpr int64_t kLengthBytes = 2;
  return std::max<int64_t>(num_tokens, 0) * (kLengthBytes + kMinLogprobBytes * (1 + num_top));
}

int64_t MinPromptBytes(const GenerationRequest& request) {
  return MinLogprobsBytes(static_cast<int64_t>(request.prompt_ids.size()) - 1,
                          request.prompt_logprobs);
}

}  // namespace

absl::Status CheckResponseBytes(int64_t num_bytes, int64_t limit) {
  if (num_bytes <= limit) return absl::OkStatus();
  return WithReason(
      absl::OutOfRangeError(absl::StrCat(
          "the answer has at least ", num_bytes, " bytes, more than the ", limit,
          " that the client takes (max_response_bytes; gRPC's libraries take ",
          kDefaultMaxResponseBytes,
          " by default): ask for less, stream it, or raise the channel's "
          "grpc.max_receive_message_length and say so in max_response_bytes, -1 for any size")),
      "RESPONSE_TOO_LARGE");
}

int64_t MinResponseBytes(const GenerationRequest& request) {
  const bool may_end_early =
      !request.eos_token_ids.empty() || !request.stop_token_ids.empty() || !request.stop.empty();
  const int64_t num_tokens =
      may_end_early ? std::max<int64_t>(request.min_tokens, 1) : request.max_tokens;
  const int64_t completion_bytes =
      num_tokens + MinLogprobsBytes(num_tokens, request.sampling.num_logprobs);
  return request.num_completions * completion_bytes + MinPromptBytes(request);
}

int64_t MinStreamMessageBytes(const GenerationRequest& request) { return MinPromptBytes(request); }

int64_t MinResponseBytes(const ScoreRequest& request) {
  const auto num_tokens = static_cast<int64_t>(request.token_ids.size());
  return num_tokens + MinLogprobsBytes(num_tokens - 1, request.top_logprobs);
}

}  // namespace ultrasketch
