// From the service's messages to the engine's requests.
#ifndef ULTRASKETCH_SERVER_REQUEST_TRANSLATION_H_
#define ULTRASKETCH_SERVER_REQUEST_TRANSLATION_H_

#include <cstddef>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "server/engine_loop/engine_loop.h"
#include "server/engine_loop/score.h"
#include "server/model_host.h"
#include "ultrasketch/v1/generation.pb.h"

namespace ultrasketch {

// What is unset takes the value of the model's generation_config.json, or else the neutral one; an
// unset seed is drawn. max_tokens and min_tokens are cut to what the context leaves.
//
// INVALID_ARGUMENT, "<field>: ...", for everything that is wrong with the prompt and for what
// EngineLoop::Submit would not see; ranges of the sampling options are Submit's to check. A text
// that is too long for the context whatever its tokens are is refused without being tokenized.
absl::StatusOr<GenerationRequest> TranslateGenerateRequest(const v1::GenerateRequest& message,
                                                           const HostedModel& model,
                                                           absl::Time deadline);

// The same for scoring.
absl::StatusOr<ScoreRequest> TranslateScoreRequest(const v1::ScoreRequest& message,
                                                   const HostedModel& model, absl::Time deadline);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_REQUEST_TRANSLATION_H_
