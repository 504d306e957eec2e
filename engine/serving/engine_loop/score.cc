#include "engine/serving/engine_loop/score.h"

#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

#include "engine/base/strings.h"

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

absl::StatusOr<RequestId> SubmitScore(EngineLoop& loop, ScoreRequest request, ScoreCallback done) {
  if (request.top_logprobs < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("top_logprobs: ", request.top_logprobs, " is less than 0"));
  }
  GenerationRequest generation;
  generation.prompt_ids = std::move(request.token_ids);
  generation.max_tokens = 0;
  generation.prompt_logprobs = request.top_logprobs;
  generation.priority = request.priority;
  generation.deadline = request.deadline;
  absl::StatusOr<RequestId> id =
      loop.Submit(std::move(generation), std::make_shared<ScoreSink>(std::move(done)));
  absl::string_view message = id.status().message();
  if (absl::IsInvalidArgument(id.status()) && absl::ConsumePrefix(&message, "prompt_logprobs: ")) {
    return absl::InvalidArgumentError(absl::StrCat("top_logprobs: ", message));
  }
  return id;
}

}  // namespace ultrasketch
