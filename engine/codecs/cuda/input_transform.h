// How a linear site's input becomes what its kernels multiply (fold: the sums of its buckets), as
// device code does it right where an input is produced.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_INPUT_TRANSFORM_H_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_INPUT_TRANSFORM_H_

#include <cstdint>

#include "engine/codecs/cuda/tile_layout.h"

namespace ultrasketch::cuda {

// A transform takes its input in a permuted order of its own, with the signs it sums with. Buckets
// [first_bucket, first_bucket + num_buckets) are sums of columns_per_bucket columns each, times
// `weight`: a bit plane of a class of fold. Several bit planes sum the same columns.
//
//   permuted(i, bucket) = first_permuted + i * num_buckets + bucket - first_bucket
//
// so that the columns of neighbouring buckets are neighbours.
struct TransformGroup {
  int32_t first_bucket = 0;
  int32_t num_buckets = 0;
  int32_t columns_per_bucket = 1;
  int32_t first_permuted = 0;
  float weight = 1.0f;
};

// Scatter indices: where each column is in the permuted order, and the topmost bit for a sign of
// -1. They have two bytes up to this many columns, else four.
inline constexpr int64_t kMaxNarrowColumns = 32768;

// How inputs [cols] become packed inputs of `num_k_tiles` K tiles (tile_layout.h). Pointers are to
// device memory. Without groups the packed input is the input itself.
struct InputTransform {
  const TransformGroup* groups = nullptr;
  const void* scatter_indices = nullptr;
  int num_groups = 0;
  TransformGroup first_group;  // a copy
  int index_bytes = 2;         // 2 or 4
  int64_t cols = 0;
  int64_t num_k_tiles = 0;
  float max_amplification = 1.0f;  // most that a bucket can exceed the largest input
  InputForm form = InputForm::kFp16;

  // Tables are allocated in multiples of 16 bytes.
  US_HOST_DEVICE int64_t table_bytes() const {
    return num_groups > 0 ? (cols * index_bytes + 15) / 16 * 16 : 0;
  }
  US_HOST_DEVICE int64_t group_bytes() const {
    return (num_groups * int64_t{sizeof(TransformGroup)} + 15) / 16 * 16;
  }
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_INPUT_TRANSFORM_H_
