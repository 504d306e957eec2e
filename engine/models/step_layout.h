// A step as the backend wants it, from a step as the caller describes it.
#ifndef ULTRASKETCH_ENGINE_MODELS_STEP_LAYOUT_H_
#define ULTRASKETCH_ENGINE_MODELS_STEP_LAYOUT_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "engine/backends/backend.h"
#include "engine/models/model.h"

namespace ultrasketch {

// Reused from step to step, so that its memory is too.
class StepLayout {
 public:
  // INVALID_ARGUMENT, naming sequence, expected and found, when the step is empty or breaks a limit
  // of the options, the context, the vocabulary or the cache.
  absl::Status Build(absl::Span<const SequenceSlice> sequences, const ModelConfig& config,
                     const ModelOptions& options, const KvCacheLayout& layout);

  // Refers to this object and to the blocks of the sequences that Build was given.
  const StepInput& input() const { return input_; }

 private:
  std::vector<int32_t> token_ids_;
  std::vector<int32_t> positions_;
  std::vector<AttentionSpan> spans_;
  std::vector<int32_t> logit_tokens_;
  StepInput input_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_MODELS_STEP_LAYOUT_H_
