#include "engine/serving/engine_loop/score.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/serving/engine_loop/validate_request.h"

namespace ultrasketch {
namespace {

using ScoreCallback = absl::AnyInvocable<void(absl::StatusOr<ScoreResult>)>;

class ScoreSink final : public GenerationSink {
 public:
  explicit ScoreSink(ScoreCallback done) : done_(std::move(done)) {}

  void OnDelta(GenerationDelta) override {}

  void OnFinish(GenerationResult result) override {
    if (!result.status.ok()) {
      done_(result.status);
      return;
    }
    ScoreResult score;
    score.logprobs = std::move(result.prompt_logprobs);
    for (const SampledToken& token : score.logprobs) score.sum_logprob += token.logprob;
    done_(std::move(score));
  }

 private:
  ScoreCallback done_;
};

}  // namespace

absl::Status ValidateScoreOptions(const ScoreRequest& request) {
  // -1 is the engine's way to say none; here 0 is.
  if (request.top_logprobs >= 0) return ValidateLogprobs("top_logprobs", request.top_logprobs);
  return absl::InvalidArgumentError(
      absl::StrCat("top_logprobs: ", request.top_logprobs, " is outside [0, ", kMaxLogprobs, "]"));
}

absl::StatusOr<RequestId> SubmitScore(EngineLoop& loop, ScoreRequest request, ScoreCallback done) {
  US_RETURN_IF_ERROR(ValidateScoreOptions(request));
  GenerationRequest generation;
  generation.prompt_ids = std::move(request.token_ids);
  generation.max_tokens = 0;
  generation.prompt_logprobs = request.top_logprobs;
  generation.priority = request.priority;
  generation.deadline = request.deadline;
  generation.arrival = request.arrival;
  generation.client = std::move(request.client);
  return loop.Submit(std::move(generation), std::make_shared<ScoreSink>(std::move(done)));
}

}  // namespace ultrasketch
