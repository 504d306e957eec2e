// Passes over a row of logits that sampling is made of. Each reads the row once or a few times;
// none sorts it. The results do not depend on the processor.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_SAMPLING_LOGITS_MATH_H_
#define ULTRASKETCH_ENGINE_BACKENDS_SAMPLING_LOGITS_MATH_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace ultrasketch {

// A token and its logit. Ordered by likelihood: descending logit, then ascending id.
struct Candidate {
  float logit;
  int32_t id;

  friend bool operator<(const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  }
};

// The largest logit. INTERNAL when one is NaN or +infinity, or all are -infinity.
absl::StatusOr<float> CheckedMaximum(absl::Span<const float> logits);

// e^x for x <= 0, relative error below 3e-7; 0 for x < -87.
float ExpNonPositive(float x);

// Weights are summed in blocks of this many, so that a draw can skip to the right block.
inline constexpr size_t kWeightBlock = 512;

// weights[i] = e^((logits[i] - maximum) * inverse_temperature), or 0 where that is below
// `least_weight`; block_sums[b] is the sum of the weights [b * kWeightBlock, (b + 1) *
// kWeightBlock) in double. Resizes both and returns the sum of all.
double ComputeWeights(absl::Span<const float> logits, float maximum, float inverse_temperature,
                      float least_weight, std::vector<float>& weights,
                      std::vector<double>& block_sums);

// Keeps the smallest set of most likely tokens whose weights add up to `least_mass`, but at least
// one token: sets the other weights to 0, updates the block sums, and returns the sum of what is
// kept. All arguments are those of the ComputeWeights before.
double KeepTopP(absl::Span<const float> logits, float maximum, float inverse_temperature,
                double least_mass, std::vector<float>& weights, std::vector<double>& block_sums);

// Natural log of the sum of e^logits[i], accumulated in double.
double LogSumExp(absl::Span<const float> logits, float maximum);

// The `count` most likely tokens (all, if there are fewer), most likely first. O(size + count log
// count).
void SelectMostLikely(absl::Span<const float> logits, size_t count,
                      std::vector<Candidate>& selected);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BACKENDS_SAMPLING_LOGITS_MATH_H_
