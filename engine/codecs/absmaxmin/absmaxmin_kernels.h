// Products with an AbsMaxMin sketch on a CPU, one implementation per instruction set: exact sums
// within a chunk of columns, the chunks in a fixed order, so that all of them give the same bits.
//
// Rows are taken in blocks of 32, a lane of 16 bits each, so that a column's bucket is one load of
// 32 neighbours, whatever the hash: there is no gathering. For each block the codes of the sketch
// are unpacked to keys, which are made so that "the level of largest magnitude, of several that of
// the first hash row" is the largest integer. A key is
//
//   bits 4 to 11   |level|
//   bits 1 to 3    7 - hash row
//   bit 0          the level's sign
//
// Packed codes, 16 / bits of a row to a word of 16 bits, the first in the lowest bits, 32 rows of
// words together:
//
//   word[block][hash row of a class][bucket / (16 / bits)][row % 32]
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_KERNELS_H_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_KERNELS_H_

#include <cstdint>

#include "engine/codecs/rounded_input.h"

namespace ultrasketch::absmaxmin_internal {

inline constexpr int64_t kRowsPerBlock = 32;

// Columns whose products are summed as integers: levels of at most 128 times inputs of at most
// kMaxAbsMaxMinInteger do not exceed 2^29.
inline constexpr int64_t kChunkColumns = 128;
inline constexpr int32_t kMaxAbsMaxMinInteger = 32767;

// Columns of a class in some order. offsets[j * table_stride + i] is where in the keys of a block
// the bucket of column i in hash row j begins.
struct AbsMaxMinColumns {
  const int32_t* offsets;
  int64_t table_stride;
  int64_t hash_rows;
  int64_t num_columns;
};

struct AbsMaxMinKernels {
  const char* name;  // "avx512", "avx2", "portable"

  // RoundInput of rounded_input.h, with a limit of at most kMaxAbsMaxMinInteger.
  RoundedInput (*round)(const float* x, int64_t size, int64_t padded_size, int32_t limit,
                        int16_t* q);

  // The keys [num_buckets][32] of one hash row of a block from its words.
  void (*unpack)(const uint16_t* words, int64_t num_buckets, int64_t bits, int64_t hash_row,
                 int16_t* keys);

  // Decodes up to kChunkColumns columns to levels, two columns of a row side by side, in an order
  // of rows that `multiply` knows: weights [pairs of columns][64].
  void (*decode)(const int16_t* keys, const AbsMaxMinColumns& columns, int16_t* weights);

  // sums[r] += unit * sum over i of the decoded level of row r times x[i], for the 32 rows and up
  // to kChunkColumns columns: `decode` and `multiply` for one token, to the bit, without memory in
  // between. x has a zero after an odd number of columns.
  void (*decode_multiply)(const int16_t* keys, const AbsMaxMinColumns& columns, const int16_t* x,
                          float unit, float* sums);

  // sums[t][r] += unit * sum over i of weights[i][r] * x[t][i]. `sums` is [num_tokens][32], x has
  // x_stride integers between tokens and a zero after an odd number of columns.
  void (*multiply)(const int16_t* weights, int64_t num_columns, const int16_t* x, int64_t x_stride,
                   int64_t num_tokens, float unit, float* sums);
};

// The fastest that this processor can run.
const AbsMaxMinKernels& GetAbsMaxMinKernels();

// Those of a given instruction set; null when this processor cannot run it.
const AbsMaxMinKernels* FindAbsMaxMinKernels(const char* name);

extern const AbsMaxMinKernels kAvx512AbsMaxMinKernels;
extern const AbsMaxMinKernels kAvx2AbsMaxMinKernels;
extern const AbsMaxMinKernels kPortableAbsMaxMinKernels;

}  // namespace ultrasketch::absmaxmin_internal

#endif  // ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_KERNELS_H_
