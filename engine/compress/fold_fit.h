// Fits the levels and scales of a folding sketch to second moments of its inputs and outputs.
//
// Method: the least-squares weights theta = G H^-1 of the folded inputs are rounded to a level
// times the row's scale one group at a time, and each rounding error is made up for by the groups
// still to come (GPTQ: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative
// Pre-trained Transformers", ICLR 2023, section 3); then single levels are changed as long as that
// lowers the error, and the scale is refitted.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_FOLD_FIT_H_
#define ULTRASKETCH_ENGINE_COMPRESS_FOLD_FIT_H_

#include <cstdint>
#include <vector>

#include "Eigen/Core"
#include "absl/types/span.h"

#include "engine/base/thread_pool.h"
#include "engine/compress/site_moments.h"

namespace ultrasketch {

// Sums over tokens of the folded inputs z [groups], without the planes' weights, and of the output
// y [rows] that they should give.
struct FoldMoments {
  RowMajorMatrix input;    // H = sum of z z^T [groups, groups], symmetric
  RowMajorMatrix cross;    // G = sum of y z^T [rows, groups]
  Eigen::VectorXd output;  // sum of y^2 [rows]
};

// Row r's weight of group g is scales[r] * FoldUnit(planes of g) * levels[r][g].
struct FoldFit {
  std::vector<int16_t> levels;  // [rows, groups], odd, below 2^planes in magnitude
  std::vector<float> scales;    // [rows], finite, at least 0
};

struct FoldFitOptions {
  // Added to H's diagonal, relative to its mean: H need not be regular.
  double relative_damping = 1e-6;
  // Passes of changes of single levels, at most.
  int num_passes = 8;
};

// `planes` [groups]: the bit planes of each group. Any finite moments give finite scales, however
// singular `input` is: dead and duplicate groups, fewer tokens than groups. Rows are independent of
// each other, so the result does not depend on the number of threads.
FoldFit FitFold(const FoldMoments& moments, absl::Span<const uint8_t> planes,
                const FoldFitOptions& options, ThreadPool& pool);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_FOLD_FIT_H_
