// Scoring: log-probabilities of given tokens.
#ifndef ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_SCORE_H_
#define ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_SCORE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "engine/serving/engine_loop/engine_loop.h"

namespace ultrasketch {

struct ScoreRequest {
  std::vector<int32_t> token_ids;  // at least two, at most the model's context
  int32_t top_logprobs = 0;        // also of this many most likely tokens at each place
  int32_t priority = 0;
  std::string client;  // as in GenerationRequest
  absl::Time deadline = absl::InfiniteFuture();
  absl::Time arrival = absl::InfinitePast();  // as in GenerationRequest
};

// INVALID_ARGUMENT naming the field in the proto's ScoreRequest. Needs no tokens.
absl::Status ValidateScoreOptions(const ScoreRequest& request);

// Runs through the loop like a generation request that generates nothing, in the same steps as
// others. `done` is called once, on the loop's delivery thread, under the rules for sinks. The
// request can be cancelled by its id. Errors as Submit's, and then `done` is not called.
absl::StatusOr<RequestId> SubmitScore(EngineLoop& loop, ScoreRequest request,
                                      absl::AnyInvocable<void(absl::StatusOr<ScoreResult>)> done);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_SCORE_H_
