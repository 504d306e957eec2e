// Building the table of columns of a sketch (sketch.h).
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_COLUMN_PAIRS_H_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_COLUMN_PAIRS_H_

#include <cstdint>
#include <cstring>
#include <vector>

#include "engine/codecs/cuda/sketch.h"

namespace ultrasketch::cuda {

class ColumnPairs {
 public:
  explicit ColumnPairs(int64_t cols) : cols_(static_cast<uint32_t>(cols)) {}

  int column_bytes() const { return cols_ <= kMaxNarrowColumns ? 2 : 4; }
  int num_pairs() const { return static_cast<int>(entries_.size() / 2); }
  // Pairs that a bucket of so many columns takes.
  static int32_t PairsOf(int64_t num_columns) {
    return static_cast<int32_t>((num_columns + 1) / 2);
  }

  // The next bucket's columns, in order, then EndBucket.
  void Add(int32_t column, bool is_negative) {
    entries_.push_back(static_cast<uint32_t>(column) | (is_negative ? SignBit() : 0u));
  }
  void EndBucket() {
    if (entries_.size() % 2 != 0) entries_.push_back(cols_);
  }

  // The table, its last pair included; nothing may be added any more.
  std::vector<uint8_t> Finish() {
    entries_.insert(entries_.end(), 2, cols_);
    const auto entry_bytes = static_cast<size_t>(column_bytes());
    std::vector<uint8_t> bytes(entries_.size() * entry_bytes);
    for (size_t i = 0; i < entries_.size(); ++i) {
      std::memcpy(bytes.data() + i * entry_bytes, &entries_[i], entry_bytes);  // little-endian
    }
    return bytes;
  }

 private:
  uint32_t SignBit() const { return 1u << (8 * column_bytes() - 1); }

  uint32_t cols_;
  std::vector<uint32_t> entries_;
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_COLUMN_PAIRS_H_
