// Building a transform's scatter indices (input_transform.h).
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_SCATTER_INDICES_H_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_SCATTER_INDICES_H_

#include <cstdint>
#include <cstring>
#include <vector>

#include "engine/codecs/cuda/input_transform.h"

namespace ultrasketch::cuda {

// A transform's tables on the host.
struct TransformTables {
  std::vector<TransformGroup> groups;    // by ascending first_bucket
  std::vector<uint8_t> scatter_indices;  // of index_bytes each
  int index_bytes = 2;
  float max_amplification = 1.0f;

  // The transform of inputs [cols] with these tables in device memory.
  InputTransform At(const uint8_t* device_groups, const uint8_t* device_indices, int64_t cols,
                    int64_t num_k_tiles, InputForm form) const {
    return {reinterpret_cast<const TransformGroup*>(device_groups),
            device_indices,
            static_cast<int>(groups.size()),
            groups.front(),
            index_bytes,
            cols,
            num_k_tiles,
            max_amplification,
            form};
  }
};

class ScatterIndices {
 public:
  explicit ScatterIndices(int64_t cols) : indices_(static_cast<size_t>(cols)) {}

  // Gives `group`, whose buckets are known, its part of the permuted order.
  void Begin(TransformGroup& group) {
    group.first_permuted = num_permuted_;
    num_permuted_ += group.columns_per_bucket * group.num_buckets;
  }
  // Column `column` is the i-th of bucket `bucket` of the group.
  void Put(const TransformGroup& group, int64_t bucket, int64_t i, int32_t column,
           bool is_negative) {
    indices_[static_cast<size_t>(column)] = {
        static_cast<uint32_t>(group.first_permuted + i * group.num_buckets + bucket), is_negative};
  }

  // Sets the tables' indices.
  void Pack(TransformTables& tables) const {
    const size_t bytes_each = static_cast<int64_t>(indices_.size()) <= kMaxNarrowColumns ? 2 : 4;
    tables.index_bytes = static_cast<int>(bytes_each);
    tables.scatter_indices.resize(indices_.size() * bytes_each);
    for (size_t column = 0; column < indices_.size(); ++column) {
      uint32_t index = indices_[column].permuted;
      if (indices_[column].is_negative) index |= 1u << (8 * bytes_each - 1);
      // Little-endian.
      std::memcpy(tables.scatter_indices.data() + column * bytes_each, &index, bytes_each);
    }
  }

 private:
  struct Index {
    uint32_t permuted = 0;
    bool is_negative = false;
  };
  std::vector<Index> indices_;
  int32_t num_permuted_ = 0;
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_SCATTER_INDICES_H_
