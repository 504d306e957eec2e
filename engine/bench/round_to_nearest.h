// Rounding to nearest, the quantization that everybody knows: a landmark to measure sketches by.
//
// A weight matrix is cut, along its columns, into groups of 64 (the last of a row may be shorter).
// Each has a 16-bit float, the largest magnitude in it, m; its weights are rounded to the nearest
// of 2^bits levels, evenly spaced from -m to m.
#ifndef ULTRASKETCH_ENGINE_BENCH_ROUND_TO_NEAREST_H_
#define ULTRASKETCH_ENGINE_BENCH_ROUND_TO_NEAREST_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "engine/format/checkpoint.h"

namespace ultrasketch {

inline constexpr int kLandmarkGroup = 64;

// Replaces weights, rows of `cols`, by what they decode to. `bits` is 1 to 8.
void RoundToNearest(int bits, int64_t cols, absl::Span<float> weights);

// Bytes that the linear layers of a model take, scales included, rows padded to whole bytes.
int64_t RoundToNearestBytes(int bits, const ModelConfig& config);

// A dense checkpoint (config and weights, no tokenizer) in `folder`, which must exist, with the
// linear layers' weights replaced by what they decode to, in F32. Biases, norms, embedding and head
// are as they were. Needs little memory.
absl::Status WriteRoundedCheckpoint(const Checkpoint& dense, int bits, const std::string& folder);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_ROUND_TO_NEAREST_H_
