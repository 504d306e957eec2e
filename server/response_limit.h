// How large an answer a client takes, and what becomes of one that is larger.
//
// gRPC's libraries refuse to receive a message above 4 MiB unless the channel says otherwise, and
// the server does not learn of it: an answer above that would be computed, counted as given, and
// lost. So a client says what it takes, max_response_bytes, or is taken at gRPC's word.
#ifndef ULTRASKETCH_SERVER_RESPONSE_LIMIT_H_
#define ULTRASKETCH_SERVER_RESPONSE_LIMIT_H_

#include <cstdint>
#include <limits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/serving/engine_loop/engine_loop.h"
#include "engine/serving/engine_loop/score.h"
#include "server/status.h"

namespace ultrasketch {

// What gRPC's libraries receive by default.
inline constexpr int64_t kDefaultMaxResponseBytes = int64_t{4} << 20;

// The largest message that the client takes. INVALID_ARGUMENT when the field makes no sense.
template <typename Message>
absl::StatusOr<int64_t> MaxResponseBytes(const Message& message) {
  if (!message.has_max_response_bytes()) return kDefaultMaxResponseBytes;
  const int64_t limit = message.max_response_bytes();
  if (limit == -1) return std::numeric_limits<int64_t>::max();
  if (limit >= 1) return limit;
  return InvalidField("max_response_bytes", "expected at least 1, or -1 for any size");
}

// OUT_OF_RANGE, reason RESPONSE_TOO_LARGE, when an answer of at least `num_bytes` is above `limit`.
// Says how to get it all the same.
absl::Status CheckResponseBytes(int64_t num_bytes, int64_t limit);

// The least that the answer can have, given that it is an answer and no error: what is certain
// before anything is computed. A stream's largest message.
int64_t MinResponseBytes(const GenerationRequest& request);
int64_t MinStreamMessageBytes(const GenerationRequest& request);
int64_t MinResponseBytes(const ScoreRequest& request);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_RESPONSE_LIMIT_H_
