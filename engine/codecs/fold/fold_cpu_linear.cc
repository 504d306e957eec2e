#include "engine/codecs/fold/fold_cpu_linear.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "engine/base/check.h"
#include "engine/base/mapped_pages.h"
#include "engine/base/shared_loop.h"

namespace ultrasketch {

using fold_internal::FoldKernels;
using fold_internal::kBucketsPerByte;
using fold_internal::kMaxFoldInteger;
using fold_internal::kRowsPerTile;
using fold_internal::kTableBytes;
using fold_internal::TileByte;

namespace {

// Of the tables of a tile's tokens: what stays in the L2 cache.
constexpr int64_t kMaxTileTableBytes = 384 * 1024;
constexpr int64_t kMaxTileTokens = 32;

}  // namespace

// The tokens [first_token, first_token + inputs.size()).
struct FoldCpuLinear::TokenTile {
  int64_t first_token = 0;
  std::vector<RoundedInput> inputs;
  std::vector<uint8_t> tables;    // [tokens][row bytes][kTableBytes]
  std::vector<uint32_t> sums;     // [tokens][kRowsPerTile]
  std::vector<int16_t> integers;  // of a token
};

FoldCpuLinear::FoldCpuLinear(const FoldLinear& linear, const FoldKernels& kernels)
    : layout_(linear.layout()),
      kernels_(kernels),
      rows_(linear.site().rows),
      row_bytes_(linear.row_bytes()),
      scales_(linear.Scales()) {
  bits_.resize(static_cast<size_t>(num_row_tiles() * row_bytes_ * kRowsPerTile));
  for (int64_t row = 0; row < rows_; ++row) {
    uint8_t* out = bits_.data() + row / kRowsPerTile * row_bytes_ * kRowsPerTile +
                   TileByte(row % kRowsPerTile);
    const uint8_t* row_bits = linear.bits() + row * row_bytes_;
    for (int64_t byte = 0; byte < row_bytes_; ++byte) out[byte * kRowsPerTile] = row_bits[byte];
  }
  ReleaseMappedPages(linear.bits(), rows_ * row_bytes_);
}

int64_t FoldCpuLinear::num_row_tiles() const { return (rows_ + kRowsPerTile - 1) / kRowsPerTile; }

int64_t FoldCpuLinear::MaxTileTokens() const {
  return std::clamp<int64_t>(kMaxTileTableBytes / (row_bytes_ * kTableBytes), 1, kMaxTileTokens);
}

int64_t FoldCpuLinear::prepared_width() const {
  const int64_t num_bytes =
      static_cast<int64_t>(sizeof(RoundedInput)) + padded_buckets() * int64_t{sizeof(int16_t)};
  return num_bytes / static_cast<int64_t>(sizeof(float));
}

void FoldCpuLinear::PrepareInput(const float* x, float* prepared) const {
  thread_local std::vector<float> sketch;
  thread_local std::vector<int16_t> integers;
  sketch.resize(static_cast<size_t>(layout_.buckets()));
  integers.resize(static_cast<size_t>(padded_buckets()));
  layout_.Fold(x, sketch.data());
  // So that twice a sum of magnitudes, less their total, fits 32 bits.
  const auto limit = static_cast<int32_t>(
      std::min<int64_t>(kMaxFoldInteger, std::numeric_limits<int32_t>::max() / layout_.buckets()));
  const RoundedInput input =
      kernels_.round(sketch.data(), layout_.buckets(), padded_buckets(), limit, integers.data());
  auto* const bytes = reinterpret_cast<uint8_t*>(prepared);
  std::memcpy(bytes, &input, sizeof(input));
  std::memcpy(bytes + sizeof(input), integers.data(), integers.size() * sizeof(int16_t));
}

void FoldCpuLinear::BuildTables(const float* prepared, int64_t first_token, int64_t num_tokens,
                                TokenTile& tile) const {
  tile.first_token = first_token;
  tile.inputs.resize(static_cast<size_t>(num_tokens));
  tile.sums.resize(static_cast<size_t>(num_tokens * kRowsPerTile));
  tile.integers.resize(static_cast<size_t>(padded_buckets()));
  const int64_t table_stride = row_bytes_ * kTableBytes;
  tile.tables.resize(std::max(tile.tables.size(), static_cast<size_t>(num_tokens * table_stride)));
  for (int64_t token = 0; token < num_tokens; ++token) {
    const float* input = prepared + (first_token + token) * prepared_width();
    std::memcpy(&tile.inputs[static_cast<size_t>(token)], input, sizeof(RoundedInput));
    std::memcpy(tile.integers.data(),
                reinterpret_cast<const uint8_t*>(input) + sizeof(RoundedInput),
                tile.integers.size() * sizeof(int16_t));
    kernels_.build_tables(tile.integers.data(), row_bytes_,
                          tile.tables.data() + token * table_stride);
  }
}

void FoldCpuLinear::MultiplyRows(int64_t row_tile, TokenTile& tile, bool accumulate,
                                 float* y) const {
  const auto num_tokens = static_cast<int64_t>(tile.inputs.size());
  kernels_.sum_subsets(bits_.data() + row_tile * row_bytes_ * kRowsPerTile, row_bytes_,
                       tile.tables.data(), num_tokens, tile.sums.data());
  const int64_t first_row = row_tile * kRowsPerTile;
  for (int64_t token = 0; token < num_tokens; ++token) {
    kernels_.scale(tile.sums.data() + token * kRowsPerTile, tile.inputs[static_cast<size_t>(token)],
                   scales_.data() + first_row, std::min(kRowsPerTile, rows_ - first_row),
                   accumulate, y + (tile.first_token + token) * rows_ + first_row);
  }
}

void FoldCpuLinear::Multiply(const float* prepared, int64_t num_tokens, bool accumulate, float* y,
                             ThreadPool& pool) const {
  if (num_tokens == 0) return;
  const int64_t num_tiles = (num_tokens + MaxTileTokens() - 1) / MaxTileTokens();
  // Each thread that works on a tile of tokens builds its tables: whole tiles to a thread where
  // there are many, else some rows of them in turn.
  const int64_t rows_at_once = num_tiles >= 4 * pool.num_threads() ? num_row_tiles() : 1;
  const int64_t parts_per_tile = (num_row_tiles() + rows_at_once - 1) / rows_at_once;
  SharedLoop(pool, num_tiles * parts_per_tile, 1, [&](const auto& take) {
    thread_local TokenTile tile;
    int64_t tile_in_tables = -1;
    int64_t begin;
    int64_t end;
    while (take(&begin, &end)) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t token_tile = item / parts_per_tile;
        if (token_tile != tile_in_tables) {
          // As even as can be.
          const int64_t first_token = num_tokens * token_tile / num_tiles;
          BuildTables(prepared, first_token,
                      num_tokens * (token_tile + 1) / num_tiles - first_token, tile);
          tile_in_tables = token_tile;
        }
        const int64_t first_row_tile = item % parts_per_tile * rows_at_once;
        const int64_t last_row_tile = std::min(first_row_tile + rows_at_once, num_row_tiles());
        for (int64_t row_tile = first_row_tile; row_tile < last_row_tile; ++row_tile) {
          MultiplyRows(row_tile, tile, accumulate, y);
        }
      }
    }
  });
}

int64_t FoldCpuLinear::resident_bytes() const {
  return static_cast<int64_t>(bits_.size() + scales_.size() * sizeof(float)) +
         layout_.cols() * static_cast<int64_t>(2 * sizeof(int32_t) + 2 * sizeof(float));
}

}  // namespace ultrasketch
