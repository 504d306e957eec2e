// Building the places of a sketch's columns (sketch.h).
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_SCATTER_INDICES_H_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_SCATTER_INDICES_H_

#include <cstdint>
#include <cstring>
#include <vector>

#include "engine/codecs/cuda/input_transform.h"

namespace ultrasketch::cuda {

class ScatterIndices {
 public:
  explicit ScatterIndices(int64_t cols) : indices_(static_cast<size_t>(cols)) {}

  // Gives `group`, whose buckets are known, entries of its own.
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

  int index_bytes() const {
    return static_cast<int64_t>(indices_.size()) <= kMaxNarrowColumns ? 2 : 4;
  }
  std::vector<uint8_t> Pack() const {
    const auto bytes_each = static_cast<size_t>(index_bytes());
    std::vector<uint8_t> bytes(indices_.size() * bytes_each);
    for (size_t column = 0; column < indices_.size(); ++column) {
      uint32_t index = indices_[column].permuted;
      if (indices_[column].is_negative) index |= 1u << (8 * bytes_each - 1);
      std::memcpy(bytes.data() + column * bytes_each, &index, bytes_each);  // little-endian
    }
    return bytes;
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
