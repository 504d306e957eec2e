// An AbsMaxMin sketch in device memory: index arithmetic shared by the kernels and what packs for
// them.
//
// Rows are taken in blocks of 32, a bit of a word each, so that a few logic operations compare or
// select the codes of 32 rows at once. A bucket of b bits is b words: the bits of the code's
// magnitude from the lowest on, then its sign. A sign without magnitude is the lowest code,
// -2^(b-1).
//
//   words     [row block][class][hash row][bucket][bit]        each class from a multiple of 4 on
//   entries   [K tile][column][hash row]  16 bits, the bucket within the hash row; for all columns
//             as many as the most hash rows of a class take in entry_words words of 8 bytes
//
// The columns of a packed input are in the permuted order, each class padded to whole K tiles.
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_MATRIX_H_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_MATRIX_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/codecs/cuda/product.h"
#include "engine/codecs/cuda/tile_layout.h"

namespace ultrasketch::cuda {

inline constexpr int kBucketBlockRows = 32;
inline constexpr int kMaxBucketParts = 16;
inline constexpr int kMaxDeviceHashRows = 8;
inline constexpr int kHashRowsPerEntryWord = 4;

// A class of columns.
struct BucketPart {
  int32_t first_k_tile = 0;
  int32_t end_k_tile = 0;
  int32_t num_columns = 0;
  int32_t hash_rows = 1;
  int32_t bits = 2;
  int32_t unit_exponent = 0;
  int32_t first_word = 0;          // in a row block
  int32_t words_per_hash_row = 0;  // buckets * bits
};

// Which bit of a word is a row's: from where the kernels find neighbouring rows when they expand
// codes to pairs of fp16 (absmaxmin_decode.cuh).
US_HOST_DEVICE constexpr int CodeBitOfRow(int bits, int row) {
  return bits == 3 ? row % 8 * 4 + row / 8 : row / 2 + row % 2 * 16;
}

// Decoded weights are fp16: code * unit * 2^-kCodeShift, exact and never subnormal.
inline constexpr int kCodeShift = 14;

// Packs `num_rows` rows of codes [num_rows, row_codes] in device memory from `first_row`, a
// multiple of kBucketBlockRows, on; rows that fill up the last block are written too. Codes are in
// the order of the layout's buckets, so that a class's begin at `first_code`.
cudaError_t LaunchPackAbsMaxMin(const int8_t* codes, int64_t row_codes, int64_t first_code,
                                const BucketPart& part, int64_t first_row, int64_t num_rows,
                                int64_t words_per_block, uint32_t* words, cudaStream_t stream);

// The product with `arguments.matrix.tiles` as words (above) and `arguments.matrix.buckets`. A
// token's result is the same to the bit in every batch: each output is one chain of tensor-core
// instructions over 16 columns each, in ascending order, whatever the kernel.
cudaError_t LaunchAbsMaxMinProduct(const ProductArguments& arguments, cudaStream_t stream);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_MATRIX_H_
