// The folding sketch of inputs in the form that device code reads (engine/codecs/cuda/sketch.h).
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_FOLD_SKETCH_H_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_FOLD_SKETCH_H_

#include <cstdint>
#include <vector>

#include "engine/codecs/cuda/sketch.h"
#include "engine/codecs/fold/fold_layout.h"

namespace ultrasketch::cuda {

struct FoldSketch {
  std::vector<SketchGroup> groups;  // by ascending first_bucket
  std::vector<uint8_t> places;      // of place_bytes each
  int place_bytes = 2;
  float max_gain = 1.0f;
};

FoldSketch MakeFoldSketch(const FoldLayout& layout);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_FOLD_SKETCH_H_
