// Waiting for an engine loop, for callers that have a thread to spare.
#ifndef ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_BLOCKING_H_
#define ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_BLOCKING_H_

#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/serving/engine_loop/engine_loop.h"
#include "engine/serving/engine_loop/score.h"

namespace ultrasketch {

// One completion as a whole.
struct GenerationOutput {
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<SampledToken> logprobs;  // parallel to token_ids when log-probabilities are wanted
  GenerationResult result;
};

// Submits the request and waits until all its completions have finished; in order of their index.
// `on_delta`, unless null, is called on the calling thread for each delta as it arrives, and may
// block. Requesting a stop cancels the request. Submit's errors, or the status of the first
// completion that was cancelled or failed. Not for the loop's own threads.
absl::StatusOr<std::vector<GenerationOutput>> GenerateAndWait(
    EngineLoop& loop, GenerationRequest request,
    const std::function<void(const GenerationDelta&)>& on_delta = nullptr,
    const std::stop_token& stop = {});

// SubmitScore, and waits for the result.
absl::StatusOr<ScoreResult> ScoreAndWait(EngineLoop& loop, ScoreRequest request);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_BLOCKING_H_
