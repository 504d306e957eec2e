// Products with an AbsMaxMin sketch on a CPU, one implementation per instruction set.
//
// Rows are taken in blocks of 32, a vector lane each, so that a column's bucket is one load of 32
// neighbours, whatever the hash: there is no gathering. For each block the codes of the sketch are
// unpacked to keys, which are made so that "the level of largest magnitude, of several that of the
// first hash row" is the largest integer. A key is
//
//   bits 4 to 30   those of the float |level| * unit
//   bits 1 to 3    7 - hash row
//   bit 0          the level's sign
//
// (the low bits of that float are zero: it has at most eight significant ones).
//
// Packed codes, 32 / bits of a row to a word, the first in the lowest bits, 32 rows of words
// together:
//
//   word[block][hash row of a class][bucket / (32 / bits)][row % 32]
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_KERNELS_H_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_KERNELS_H_

#include <cstdint>

namespace ultrasketch::absmaxmin_internal {

inline constexpr int64_t kRowsPerBlock = 32;

struct AbsMaxMinKernels {
  const char* name;  // "avx512", "avx2", "portable"

  // The keys [num_buckets][32] of one hash row of a block from its words.
  void (*unpack)(const uint32_t* words, int64_t num_buckets, int64_t bits, float unit,
                 int64_t hash_row, uint32_t* keys);

  // Decodes columns of a class: weights [num_columns][32]. offsets[j][i] is where in `keys` the
  // bucket of column i in hash row j begins, the hash rows table_stride apart.
  void (*decode)(const uint32_t* keys, const int32_t* offsets, int64_t table_stride,
                 int64_t hash_rows, int64_t num_columns, float* weights);

  // sums[r] += sum over the columns i, ascending, of the decoded weight of row r times x[i], for
  // the 32 rows: `decode` and `multiply` for one token, to the bit, without memory in between.
  void (*decode_multiply)(const uint32_t* keys, const int32_t* offsets, int64_t table_stride,
                          int64_t hash_rows, int64_t num_columns, const float* x, float* sums);

  // sums[t][r] += sum over i, ascending, of weights[i][r] * x[t][i]. `sums` is [num_tokens][32], x
  // has x_stride floats between tokens.
  void (*multiply)(const float* weights, int64_t num_columns, const float* x, int64_t x_stride,
                   int64_t num_tokens, float* sums);
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
