// Tables of int8 or int4 with a scale for each group of 64 columns, as tensor cores read them.
//
// A step of tile_layout.h is a group. Of a row tile and step a lane holds rows l / 4 and l / 4 + 8,
// columns 16 * (l % 4) and following:
//
//   int8   [row tile][step][row of the lane][lane]  16 bytes, a column each
//   int4   [row tile][step][lane]                   16 bytes: two words for each row, of 8 columns
//   scales [row tile][step][row]                    16 bits
//
// A word of int4 has columns 0, 2, 4, 6 in its lower half and 1, 3, 5, 7 in its upper one, each
// plus 8, so that a shift, a logic operation and a subtraction make a pair of binary16 numbers.
#ifndef ULTRASKETCH_ENGINE_CODECS_GROUPED_CUDA_GROUPED_PRODUCT_H_
#define ULTRASKETCH_ENGINE_CODECS_GROUPED_CUDA_GROUPED_PRODUCT_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/codecs/cuda/product.h"
#include "engine/codecs/cuda/tile_layout.h"

namespace ultrasketch::cuda {

inline constexpr int kInt8StepBytes = kTileRows * kStepColumns;
inline constexpr int kInt4StepBytes = kInt8StepBytes / 2;

// Byte of a weight within the matrix; for int4 the byte's lower half where InUpperHalf is false.
US_HOST_DEVICE constexpr int64_t Int8Offset(int64_t row, int64_t column, int64_t num_steps) {
  const int64_t tile_row = row % kTileRows;
  const int64_t lane = tile_row % 8 * 4 + column % kStepColumns / kColumnsPerLane;
  return (row / kTileRows * num_steps + column / kStepColumns) * kInt8StepBytes +
         tile_row / 8 * 512 + lane * 16 + column % kColumnsPerLane;
}
US_HOST_DEVICE constexpr int64_t Int4Offset(int64_t row, int64_t column, int64_t num_steps) {
  const int64_t tile_row = row % kTileRows;
  const int64_t lane = tile_row % 8 * 4 + column % kStepColumns / kColumnsPerLane;
  const int64_t lane_column = column % kColumnsPerLane;
  return (row / kTileRows * num_steps + column / kStepColumns) * kInt4StepBytes + lane * 16 +
         tile_row / 8 * 8 + lane_column / 8 * 4 + lane_column % 2 * 2 + lane_column % 8 / 4;
}
US_HOST_DEVICE constexpr bool Int4InUpperHalf(int64_t column) { return column / 2 % 2 != 0; }

US_HOST_DEVICE constexpr int64_t GroupScaleOffset(int64_t row, int64_t step, int64_t num_steps) {
  return (row / kTileRows * num_steps + step) * kTileRows + row % kTileRows;
}

// Products with `matrix.tiles` as above and `matrix.group_scales` (product.h). A token's result is
// the same to the bit in every batch: a group's columns are summed by four instructions, the groups
// in ascending order, whatever the number of tokens.
cudaError_t LaunchInt8Product(const ProductArguments& arguments, cudaStream_t stream);
cudaError_t LaunchInt4Product(const ProductArguments& arguments, cudaStream_t stream);

// Packs `num_rows` rows from `first_row`, a multiple of kTileRows, on; rows and columns that fill
// up the last tile and step are written too. `values` [num_rows, row_bytes] and `scales` [num_rows,
// num_steps] are in device memory in the stored order (grouped_table.h).
cudaError_t LaunchPackGrouped(bool is_int4, const uint8_t* values, int64_t cols,
                              const uint16_t* scales, int64_t first_row, int64_t num_rows,
                              int64_t num_steps, uint8_t* tiles, uint16_t* packed_scales,
                              cudaStream_t stream);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_GROUPED_CUDA_GROUPED_PRODUCT_H_
