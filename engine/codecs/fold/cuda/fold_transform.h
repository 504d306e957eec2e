// Folding of inputs in the form that device code reads (input_transform.h).
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_FOLD_TRANSFORM_H_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_FOLD_TRANSFORM_H_

#include "engine/codecs/cuda/scatter_indices.h"
#include "engine/codecs/fold/fold_layout.h"

namespace ultrasketch::cuda {

TransformTables MakeFoldTransform(const FoldLayout& layout);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_FOLD_TRANSFORM_H_
