// One of a request's completions: from sampled tokens to text, and when it ends.
#ifndef ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_COMPLETION_H_
#define ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_COMPLETION_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/backends/sampling/sampling.h"
#include "engine/format/tokenizer/tokenizer.h"
#include "engine/serving/engine_loop/engine_loop.h"
#include "engine/serving/engine_loop/stop_matcher.h"

namespace ultrasketch {

// Not thread-safe. Keeps references to the request and the tokenizer.
class Completion {
 public:
  struct Ending {
    FinishReason reason = FinishReason::kStop;
    std::string stop_string;
  };

  // `context_tokens`: most tokens that prompt and completion may have together; more than the
  // prompt has.
  Completion(const GenerationRequest& request, const Tokenizer& tokenizer, int32_t index,
             int64_t context_tokens);

  Completion(const Completion&) = delete;
  Completion& operator=(const Completion&) = delete;

  // The draw of the next token. Valid until the next Accept.
  SampleRequest NextSample(int64_t logits_row) const;

  // Takes the next token and puts what there is to show in `delta`. An ending when it is the last.
  //
  // An end token (of eos_token_ids or stop_token_ids) is among the delta's ids; its text is shown
  // only with include_stop_in_output. The ids of a stop string are in the deltas; its text is as
  // include_stop_in_output says. A stop string that an end token completes is the ending.
  std::optional<Ending> Accept(SampledToken token, GenerationDelta& delta);

  int32_t index() const { return index_; }
  int32_t num_tokens() const { return num_tokens_; }  // generated so far

 private:
  // Passes detokenized text through the stop matcher: what is shown, and the same with every token
  // spelled out, of which the last `num_hidden` bytes are a token that is not shown.
  std::string Show(std::string_view shown, std::string_view spelled, size_t num_hidden);

  const GenerationRequest& request_;
  const Tokenizer& tokenizer_;
  const int32_t index_;
  const int64_t max_tokens_;
  std::vector<int32_t> end_ids_;  // sorted
  DetokenizerStream detokenizer_;
  std::optional<DetokenizerStream> speller_;  // of every token; only when there are stop strings
  StopMatcher stop_matcher_;
  std::optional<TokenCounts> counts_;  // only when a penalty needs them
  int32_t num_tokens_ = 0;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_COMPLETION_H_
