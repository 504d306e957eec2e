// The layout of an AbsMaxMin sketch in the form that device code reads.
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_TABLES_H_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_TABLES_H_

#include <cstdint>
#include <vector>

#include "engine/codecs/absmaxmin/absmaxmin_layout.h"
#include "engine/codecs/absmaxmin/cuda/absmaxmin_matrix.h"
#include "engine/codecs/cuda/scatter_indices.h"

namespace ultrasketch::cuda {

struct AbsMaxMinTables {
  std::vector<BucketPart> parts;
  std::vector<int64_t> first_codes;  // of the parts: their first bucket in the layout
  std::vector<uint16_t> entries;
  int entry_words = 1;
  int64_t num_k_tiles = 0;
  int64_t words_per_block = 0;

  // How an input comes to be in the permuted order (input_transform.h). Columns that fill up a
  // class's last K tile have no columns.
  TransformTables transform;
};

// At most 2^16 buckets to a hash row.
AbsMaxMinTables MakeAbsMaxMinTables(const AbsMaxMinLayout& layout);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_TABLES_H_
