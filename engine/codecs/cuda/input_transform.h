// The sketch of a linear site's inputs, as device code computes it right where an input is
// produced.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_INPUT_TRANSFORM_H_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_INPUT_TRANSFORM_H_

#include <cstdint>

#include "engine/codecs/cuda/tile_layout.h"

namespace ultrasketch::cuda {

// A sketch takes its input in an order of entries of its own, with the signs it sums with. Buckets
// [first_bucket, first_bucket + num_buckets) are sums of columns_per_bucket entries each, times
// `weight`: a bit plane of a class of the folding sketch. Several planes sum the same entries.
//
//   entry(i, bucket) = first_permuted + i * num_buckets + bucket - first_bucket
//
// so that the entries of neighbouring buckets are neighbours. Each column has one entry.
struct TransformGroup {
  int32_t first_bucket = 0;
  int32_t num_buckets = 0;
  int32_t columns_per_bucket = 1;
  int32_t first_permuted = 0;
  float weight = 1.0f;
};

// Places: of each column its entry, and the topmost bit for a sign of -1. Of two bytes up to this
// many columns, else of four.
inline constexpr int64_t kMaxNarrowColumns = 32768;

// How inputs [cols] become prepared inputs of `num_k_tiles` steps (tile_layout.h). Pointers are to
// device memory. Without groups the prepared input is the input itself.
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
