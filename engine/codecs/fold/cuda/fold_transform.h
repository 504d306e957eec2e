// The folding sketch of inputs in the form that device code reads (engine/codecs/cuda/sketch.h).
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_FOLD_TRANSFORM_H_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_FOLD_TRANSFORM_H_

#include <cstdint>
#include <vector>

#include "engine/codecs/cuda/input_transform.h"
#include "engine/codecs/fold/fold_layout.h"

namespace ultrasketch::cuda {

struct FoldTransform {
  std::vector<TransformGroup> groups;    // by ascending first_bucket
  std::vector<uint8_t> scatter_indices;  // of index_bytes each
  int index_bytes = 2;
  float max_amplification = 1.0f;
};

FoldTransform MakeFoldTransform(const FoldLayout& layout);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_FOLD_TRANSFORM_H_
