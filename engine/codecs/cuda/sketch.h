// The sketch of a linear site's inputs, as device code computes it right where an input is
// produced.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_SKETCH_H_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_SKETCH_H_

#include <cstdint>

#include "engine/codecs/cuda/tile_layout.h"

namespace ultrasketch::cuda {

// Buckets [first_bucket, first_bucket + num_buckets), each the signed sum of the next
// pairs_per_bucket pairs of columns of the table from first_pair on, times `weight`: a bit plane of
// a class of the folding sketch. Several planes sum the same columns.
struct SketchGroup {
  int32_t first_bucket = 0;
  int32_t num_buckets = 0;
  int32_t pairs_per_bucket = 1;
  int32_t first_pair = 0;
  float weight = 1.0f;
};

// Entries of the table, two a pair: the column, and the topmost bit for a sign of -1. Sites of up
// to this many columns have entries of two bytes, others of four.
inline constexpr int64_t kMaxNarrowColumns = 32767;

// How inputs [cols] become prepared inputs of `num_steps` steps (tile_layout.h). Pointers are to
// device memory. Without groups the prepared input is the input itself.
struct InputSketch {
  const SketchGroup* groups = nullptr;
  const void* columns = nullptr;
  int num_groups = 0;
  SketchGroup first_group;  // a copy
  int num_pairs = 0;        // the last is of column `cols` twice, which is zero
  int column_bytes = 2;     // 2 or 4
  int64_t cols = 0;
  int64_t num_steps = 0;
  float max_gain = 1.0f;  // most that a bucket can exceed the largest input
  PreparedForm form = PreparedForm::kHalves;

  // Tables are allocated in multiples of 16 bytes.
  US_HOST_DEVICE int64_t table_bytes() const {
    return (int64_t{num_pairs} * 2 * column_bytes + 15) / 16 * 16;
  }
  US_HOST_DEVICE int64_t group_bytes() const {
    return (num_groups * int64_t{sizeof(SketchGroup)} + 15) / 16 * 16;
  }
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_SKETCH_H_
