// From the service's messages to the engine's requests.
#ifndef ULTRASKETCH_SERVER_REQUEST_TRANSLATION_H_
#define ULTRASKETCH_SERVER_REQUEST_TRANSLATION_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "engine/format/model_config.h"
#include "engine/format/tokenizer/tokenizer.h"
#include "engine/serving/engine_loop/engine_loop.h"
#include "engine/serving/engine_loop/score.h"
#include "ultrasketch/v1/generation.pb.h"

namespace ultrasketch {

// What a model's requests are translated by.
struct RequestModel {
  // Most tokens of prompt and completion together: the model's context, or the KV cache if smaller.
  int32_t max_context_tokens = 0;
  int32_t vocab_size = 0;
  int32_t max_token_bytes = 0;  // of the longest token's text: bounds how long a prompt may be
  GenerationConfig generation_config;
  std::vector<int32_t> eos_token_ids;
  std::shared_ptr<const Tokenizer> tokenizer;
};

// The bytes of the longest token's text, as spelled in the vocabulary.
int32_t LongestTokenBytes(const Tokenizer& tokenizer);

// What is unset takes the value of the model's generation_config.json, or else the neutral one; an
// unset seed is drawn. max_tokens and min_tokens are cut to what the context leaves.
//
// INVALID_ARGUMENT, "<field>: ...", for everything that is wrong with the prompt and for what
// EngineLoop::Submit would not see; ranges of the sampling options are Submit's to check. A text
// that is too long for the context whatever its tokens are is refused without being tokenized.
// CANCELLED soon after `*cancelled`, which may be null, turns true.
absl::StatusOr<GenerationRequest> TranslateGenerateRequest(
    const v1::GenerateRequest& message, const RequestModel& model, absl::Time deadline,
    const std::atomic<bool>* cancelled = nullptr);

// The same for scoring.
absl::StatusOr<ScoreRequest> TranslateScoreRequest(const v1::ScoreRequest& message,
                                                   const RequestModel& model, absl::Time deadline,
                                                   const std::atomic<bool>* cancelled = nullptr);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_REQUEST_TRANSLATION_H_
