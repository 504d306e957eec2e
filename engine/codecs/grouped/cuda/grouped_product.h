// Group-quantized embeddings and output heads, int8 or int4 with a scale for each group of 64
// columns, as tensor cores read them.
//
// They are multiplied as signed bytes, in mma.sync.m16n8k32 or wgmma, with inputs of hi/lo bytes: a
// group's sum is exact, and scaled in float. A K tile of tile_layout.h is a group. Of an M tile and
// K tile a lane holds rows l / 4 and l / 4 + 8, columns 16 * (l % 4) and following:
//
//   [M tile][K tile]  int8    [row / 8][unit]         16 bytes: the lane's columns of a row
//                  or int4    [unit]                  16 bytes: two words of 8 columns for each of
//                                                     the lane's rows
//                     scales  [l / 4][row of the lane]  16 bits
//
// Units are interleaved so that neither lanes that each read their own meet in a bank of shared
// memory, nor those that read the same columns of eight rows (GroupUnit).
//
// Byte i of a word of int4 has column i in its upper half and column 4 + i in its lower half: with
// zeros below it, an upper half is a signed byte, 16 times the integer.
#ifndef ULTRASKETCH_ENGINE_CODECS_GROUPED_CUDA_GROUPED_PRODUCT_H_
#define ULTRASKETCH_ENGINE_CODECS_GROUPED_CUDA_GROUPED_PRODUCT_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/codecs/cuda/product.h"
#include "engine/codecs/cuda/tile_layout.h"

namespace ultrasketch::cuda {

inline constexpr int kInt8IntegerBytes = kMTileRows * kKTileColumns;
inline constexpr int kInt4IntegerBytes = kInt8IntegerBytes / 2;
inline constexpr int kKTileScaleBytes = kMTileRows * static_cast<int>(sizeof(uint16_t));
US_HOST_DEVICE constexpr int64_t GroupedKTileBytes(bool is_int4) {
  return (is_int4 ? kInt4IntegerBytes : kInt8IntegerBytes) + kKTileScaleBytes;
}
// Byte at which a K tile of the row's tile begins.
US_HOST_DEVICE constexpr int64_t GroupedKTileOffset(bool is_int4, int64_t row, int64_t k_tile,
                                                    int64_t num_k_tiles) {
  return (row / kMTileRows * num_k_tiles + k_tile) * GroupedKTileBytes(is_int4);
}

// Which of a K tile's units has columns [16 * part, 16 * part + 16) of row `row` and, of int4, of
// row row + 8: row < 8, part < 4.
US_HOST_DEVICE constexpr int GroupUnit(int row, int part) { return part * 8 + (row ^ part * 2); }
US_HOST_DEVICE constexpr int64_t GroupUnitOffset(int64_t row, int64_t column) {
  return GroupUnit(static_cast<int>(row % 8),
                   static_cast<int>(column % kKTileColumns / kColumnsPerLane)) *
         16;
}

// Byte of a weight within the matrix.
US_HOST_DEVICE constexpr int64_t Int8Offset(int64_t row, int64_t column, int64_t num_k_tiles) {
  return GroupedKTileOffset(false, row, column / kKTileColumns, num_k_tiles) +
         row % kMTileRows / 8 * 512 + GroupUnitOffset(row, column) + column % kColumnsPerLane;
}
// For int4 of the byte that it is half of.
US_HOST_DEVICE constexpr int64_t Int4Offset(int64_t row, int64_t column, int64_t num_k_tiles) {
  const int64_t unit_column = column % kColumnsPerLane;
  return GroupedKTileOffset(true, row, column / kKTileColumns, num_k_tiles) +
         GroupUnitOffset(row, column) + row % kMTileRows / 8 * 8 + unit_column / 8 * 4 +
         unit_column % 4;
}
US_HOST_DEVICE constexpr bool Int4InUpperHalf(int64_t column) { return column % 8 < 4; }

US_HOST_DEVICE constexpr int64_t GroupScaleOffset(bool is_int4, int64_t row, int64_t k_tile,
                                                  int64_t num_k_tiles) {
  const int64_t tile_row = row % kMTileRows;
  return GroupedKTileOffset(is_int4, row, k_tile, num_k_tiles) +
         (is_int4 ? kInt4IntegerBytes : kInt8IntegerBytes) +
         (tile_row % 8 * 2 + tile_row / 8) * static_cast<int64_t>(sizeof(uint16_t));
}

// K tiles of a row: high and low bytes alternate every two.
US_HOST_DEVICE constexpr int64_t NumGroupedKTiles(int64_t columns) {
  return (NumKTiles(columns) + 1) / 2 * 2;
}

// Products with `matrix.tiles` as above, of NumGroupedKTiles(columns), and `matrix.has_half_scales`
// (product.h). Groups are added in the order of tile_layout.h.
cudaError_t LaunchInt8Product(const ProductArguments& arguments, cudaStream_t stream);
cudaError_t LaunchInt4Product(const ProductArguments& arguments, cudaStream_t stream);

// Packs `num_rows` rows from `first_row`, a multiple of kMTileRows, on; rows and columns that fill
// up the last tile and K tile are written too. `values` [num_rows, row_bytes] and `scales`
// [num_rows, NumKTiles(cols)] are in device memory in the stored order (grouped_table.h).
cudaError_t LaunchPackGrouped(bool is_int4, const uint8_t* values, int64_t cols,
                              const uint16_t* scales, int64_t first_row, int64_t num_rows,
                              int64_t num_k_tiles, uint8_t* tiles, cudaStream_t stream);

// LaunchEmbedFunction for tables packed so.
cudaError_t LaunchEmbedInt8(const PackedMatrix& table, int64_t hidden_size,
                            const TokenInput* tokens, int64_t num_tokens, float* hidden,
                            cudaStream_t stream);
cudaError_t LaunchEmbedInt4(const PackedMatrix& table, int64_t hidden_size,
                            const TokenInput* tokens, int64_t num_tokens, float* hidden,
                            cudaStream_t stream);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_GROUPED_CUDA_GROUPED_PRODUCT_H_
