#include "engine/codecs/fold/fold_cpu_linear.h"

#include <algorithm>

#include "engine/base/check.h"

namespace ultrasketch {

using fold_internal::AvailableFoldKernels;
using fold_internal::FoldKernels;
using fold_internal::kBlocksPerSuperblock;
using fold_internal::kBucketsPerWord;
using fold_internal::kGroupsPerWord;
using fold_internal::kMaxTokensPerTile;
using fold_internal::kRowsPerBlock;
using fold_internal::kTableEntries;

namespace {

constexpr int64_t kRowsPerSuperblock = kRowsPerBlock * kBlocksPerSuperblock;

// Buckets [first, first + 32) of a stored row, zero beyond its end.
uint32_t LoadWord(const uint8_t* row_bits, int64_t row_bytes, int64_t first_bucket) {
  uint32_t word = 0;
  const int64_t first_byte = first_bucket / 8;
  for (int64_t byte = 0; byte < 4 && first_byte + byte < row_bytes; ++byte) {
    word |= uint32_t{row_bits[first_byte + byte]} << (8 * byte);
  }
  return word;
}

}  // namespace

FoldCpuLinear::FoldCpuLinear(const FoldLinear& linear, const FoldKernels* kernels)
    : layout_(linear.layout()),
      kernels_(kernels != nullptr ? *kernels : *AvailableFoldKernels().front()),
      rows_(linear.site().rows),
      num_words_((layout_.buckets() + kBucketsPerWord - 1) / kBucketsPerWord),
      scales_(linear.Scales()) {
  const int64_t num_blocks = (rows_ + kRowsPerBlock - 1) / kRowsPerBlock;
  words_.resize(static_cast<size_t>(num_blocks * num_words_ * kRowsPerBlock));
  const int64_t row_bytes = linear.row_bytes();
  for (int64_t row = 0; row < rows_; ++row) {
    const int64_t superblock = row / kRowsPerSuperblock;
    const int64_t blocks = BlocksOf(superblock);
    const int64_t block = row % kRowsPerSuperblock / kRowsPerBlock;
    uint32_t* base = words_.data() + superblock * kRowsPerSuperblock * num_words_;
    for (int64_t word = 0; word < num_words_; ++word) {
      base[(word * blocks + block) * kRowsPerBlock + row % kRowsPerBlock] =
          LoadWord(linear.bits() + row * row_bytes, row_bytes, word * kBucketsPerWord);
    }
  }
}

int64_t FoldCpuLinear::num_superblocks() const {
  return (rows_ + kRowsPerSuperblock - 1) / kRowsPerSuperblock;
}

int64_t FoldCpuLinear::BlocksOf(int64_t superblock) const {
  const int64_t num_blocks = (rows_ + kRowsPerBlock - 1) / kRowsPerBlock;
  return std::min(kBlocksPerSuperblock, num_blocks - superblock * kBlocksPerSuperblock);
}

void FoldCpuLinear::PrepareInput(const float* x, float* prepared) const {
  // Through a buffer where the caller folds in place: a bucket's columns lie anywhere.
  if (x == prepared) {
    thread_local std::vector<float> copy;
    copy.assign(x, x + cols());
    x = copy.data();
  }
  layout_.Fold(x, prepared);
  std::fill(prepared + layout_.buckets(), prepared + prepared_width(), 0.0f);
}

void FoldCpuLinear::MultiplySuperblock(int64_t superblock, const float* tables, int64_t num_tokens,
                                       bool accumulate, float* y) const {
  float sums[kMaxTokensPerTile * kRowsPerSuperblock];
  const int64_t blocks = BlocksOf(superblock);
  const int64_t first_row = superblock * kRowsPerSuperblock;
  kernels_.multiply(words_.data() + first_row * num_words_, num_words_, blocks, tables,
                    num_words_ * kGroupsPerWord * kTableEntries, num_tokens, sums);
  const int64_t num_rows = std::min(kRowsPerSuperblock, rows_ - first_row);
  const float* scales = scales_.data() + first_row;
  for (int64_t token = 0; token < num_tokens; ++token) {
    const float* token_sums = sums + token * blocks * kRowsPerBlock;
    float* out = y + token * rows_ + first_row;
    if (accumulate) {
      for (int64_t row = 0; row < num_rows; ++row) out[row] += scales[row] * token_sums[row];
    } else {
      for (int64_t row = 0; row < num_rows; ++row) out[row] = scales[row] * token_sums[row];
    }
  }
}

void FoldCpuLinear::Multiply(const float* prepared, int64_t num_tokens, bool accumulate, float* y,
                             ThreadPool& pool) const {
  if (num_tokens == 0) return;
  const int64_t num_tiles = (num_tokens + kMaxTokensPerTile - 1) / kMaxTokensPerTile;
  // Whole tiles to a thread where there are enough, because a tile's tables are built once by each
  // thread that works on it; else its rows are split.
  const int64_t num_threads = pool.num_threads();
  const int64_t parts_per_tile =
      std::min(num_superblocks(), (num_threads + num_tiles - 1) / num_tiles);
  const int64_t table_stride = num_words_ * kGroupsPerWord * kTableEntries;
  pool.ParallelFor(num_tiles * parts_per_tile, 1, [&](int64_t begin, int64_t end, int) {
    thread_local std::vector<float> tables;
    tables.resize(std::max(tables.size(), static_cast<size_t>(kMaxTokensPerTile * table_stride)));
    int64_t tile_in_tables = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t tile = item / parts_per_tile;
      const int64_t part = item % parts_per_tile;
      const int64_t first_token = tile * kMaxTokensPerTile;
      const int64_t tile_tokens = std::min(kMaxTokensPerTile, num_tokens - first_token);
      if (tile != tile_in_tables) {
        for (int64_t token = 0; token < tile_tokens; ++token) {
          kernels_.build_tables(prepared + (first_token + token) * prepared_width(), num_words_,
                                tables.data() + token * table_stride);
        }
        tile_in_tables = tile;
      }
      const int64_t first_superblock = num_superblocks() * part / parts_per_tile;
      const int64_t last_superblock = num_superblocks() * (part + 1) / parts_per_tile;
      for (int64_t superblock = first_superblock; superblock < last_superblock; ++superblock) {
        MultiplySuperblock(superblock, tables.data(), tile_tokens, accumulate,
                           y + first_token * rows_);
      }
    }
  });
}

int64_t FoldCpuLinear::resident_bytes() const {
  return static_cast<int64_t>(words_.size() * sizeof(uint32_t) + scales_.size() * sizeof(float)) +
         layout_.cols() * static_cast<int64_t>(2 * sizeof(int32_t) + 2 * sizeof(float));
}

}  // namespace ultrasketch
