// Where the time of a step goes.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_STEP_STAGES_H_
#define ULTRASKETCH_ENGINE_BACKENDS_STEP_STAGES_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/time/time.h"

#include "engine/codecs/codec.h"

namespace ultrasketch {

// A matrix is compressed when its codec is any but `dense`. Decoding it and multiplying with it are
// one kernel in every codec, and on GPUs what makes the product's input may be, too: the time of a
// product counts together with all that its input takes.
enum class StepStage : uint8_t {
  kSketch,     // products of the layers' compressed matrices: normalization or SwiGLU of the input,
               // its fold, decoding, multiplication
  kGemm,       // the same of the layers' uncompressed matrices; there is no fold
  kAttention,  // rotating queries and keys, storing keys and values, attention over the cache
  kHead,       // the last normalization and the product with the output head, in whatever form
  kSampling,   // choosing tokens from the logits; log-probabilities of prompts
  kOther,      // the rest: planning the step, embedding, starting and awaiting the device,
               // detokenization, stop conditions
};

inline constexpr size_t kNumStepStages = 6;

// Of a product with these weights, as one of a layer's.
inline StepStage ProductStage(const EncodedLinear& weights) {
  return weights.codec_name() == "dense" ? StepStage::kGemm : StepStage::kSketch;
}

class StageDurations {
 public:
  absl::Duration& operator[](StepStage stage) { return durations_[static_cast<size_t>(stage)]; }
  const absl::Duration& operator[](StepStage stage) const {
    return durations_[static_cast<size_t>(stage)];
  }

  absl::Duration total() const {
    absl::Duration sum;
    for (const absl::Duration duration : durations_) sum += duration;
    return sum;
  }

 private:
  std::array<absl::Duration, kNumStepStages> durations_ = {};
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BACKENDS_STEP_STAGES_H_
