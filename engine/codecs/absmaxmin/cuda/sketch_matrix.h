// An AbsMaxMin sketch in device memory: index arithmetic shared by the kernels and what packs for
// them.
//
// Rows are taken in blocks of 32, a bit of a word each, so that a few logic operations compare or
// select the codes of 32 rows at once. A bucket of b bits is b words: the bits of the level's
// magnitude from the lowest on, then its sign. A sign without magnitude is the lowest level,
// -2^(b-1).
//
//   words     [row block][class][hash row][bucket][bit]        each class from a multiple of 4 on
//   buckets   [class][hash row][place, padded to whole steps]  within the hash row
//
// The columns of a prepared input are in the order of places, each class padded to whole steps.
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_SKETCH_MATRIX_H_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_SKETCH_MATRIX_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/codecs/cuda/product.h"
#include "engine/codecs/cuda/tile_layout.h"

namespace ultrasketch::cuda {

inline constexpr int kSketchBlockRows = 32;
inline constexpr int kMaxSketchParts = 16;
inline constexpr int kMaxSketchHashRows = 8;

// A class of columns.
struct SketchPart {
  int32_t first_step = 0;
  int32_t end_step = 0;
  int32_t num_columns = 0;
  int32_t hash_rows = 1;
  int32_t bits = 2;
  int32_t unit_exponent = 0;
  int32_t first_word = 0;          // in a row block
  int32_t words_per_hash_row = 0;  // buckets * bits
  int32_t first_entry = 0;         // in the table of buckets

  US_HOST_DEVICE int32_t entries_per_hash_row() const {
    return (end_step - first_step) * kStepColumns;
  }
};

// Which bit of a word is a row's. The kernels expand codes of up to three bits by looking up four
// at a time, longer ones bit by bit; each takes neighbouring rows from different places.
US_HOST_DEVICE constexpr int SketchBitOfRow(int bits, int row) {
  return bits <= 3 ? row % 8 * 4 + row / 8 : row / 2 + row % 2 * 16;
}

// Decoded weights are binary16: level * unit * 2^-kSketchShift, exact and never subnormal.
inline constexpr int kSketchShift = 14;

// Packs `num_rows` rows of levels [num_rows, row_levels] in device memory from `first_row`, a
// multiple of kSketchBlockRows, on; rows that fill up the last block are written too. Levels are in
// the order of the layout's buckets, so that a class's begin at `first_level`.
cudaError_t LaunchPackSketch(const int8_t* levels, int64_t row_levels, int64_t first_level,
                             const SketchPart& part, int64_t first_row, int64_t num_rows,
                             int64_t words_per_block, uint32_t* words, cudaStream_t stream);

// The product with `arguments.matrix.tiles` as words (above) and `arguments.matrix.buckets`. A
// token's result is the same to the bit in every batch: each output is one chain of tensor-core
// instructions over 16 columns each, in ascending order, whatever the kernel.
cudaError_t LaunchSketchProduct(const ProductArguments& arguments, cudaStream_t stream);

// Decodes the whole matrix to binary16, [rows, num_steps * 64] in the order of prepared inputs,
// times row scale * 2^kSketchShift being the weights: for comparisons.
cudaError_t LaunchDecodeSketch(const PackedMatrix& matrix, void* out, cudaStream_t stream);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_SKETCH_MATRIX_H_
