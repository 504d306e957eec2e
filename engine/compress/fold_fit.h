// Fits the bits and scales of a folding sketch to second moments of its inputs and outputs.
//
// Method: the least-squares weights theta = G H^-1 of the folded inputs are rounded to a sign times
// the row's scale one bucket at a time, and each rounding error is made up for by the buckets still
// to come (GPTQ: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative
// Pre-trained Transformers", ICLR 2023, section 3); then single bits are flipped as long as that
// lowers the error, and the scale is refitted.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_FOLD_FIT_H_
#define ULTRASKETCH_ENGINE_COMPRESS_FOLD_FIT_H_

#include <cstdint>
#include <vector>

#include "Eigen/Core"

#include "engine/base/thread_pool.h"
#include "engine/compress/site_moments.h"

namespace ultrasketch {

// Sums over tokens of a sketch z [buckets] and the output y [rows] that it should give.
struct FoldMoments {
  RowMajorMatrix input;    // H = sum of z z^T [buckets, buckets], symmetric
  RowMajorMatrix cross;    // G = sum of y z^T [rows, buckets]
  Eigen::VectorXd output;  // sum of y^2 [rows]
};

struct FoldFit {
  std::vector<uint8_t> bits;  // [rows, ceil(buckets / 8)], as FoldLinear::FromParts takes them
  std::vector<float> scales;  // [rows], finite, at least 0
};

struct FoldFitOptions {
  // Added to H's diagonal, relative to its mean: H need not be regular.
  double relative_damping = 1e-6;
  // Passes of bit flips, at most.
  int num_flip_passes = 8;
};

// Any finite moments give finite scales, however singular `input` is: dead and duplicate buckets,
// fewer tokens than buckets. Rows are independent of each other, so the result does not depend on
// the number of threads.
FoldFit FitFold(const FoldMoments& moments, const FoldFitOptions& options, ThreadPool& pool);

// |y' - y|^2 / |y|^2 over all tokens and rows, y' being what these bits and scales give (the scales
// as they are here, not rounded for storage). NaN when y is zero.
double RelativeOutputError(const FoldMoments& moments, const FoldFit& fit);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_FOLD_FIT_H_
