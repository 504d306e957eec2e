// The sign-bit product on a CPU, one implementation per instruction set: exact sums of integers, so
// that all of them give the same bits.
//
// A sketch z is rounded to integers q of at most 13 bits and a sign, with one scale for a token
// (rounded_input.h). With m = |q| and the sign of q taken into the weight,
//
//   sum over k of weight[r][k] * q[k] = 2 * subset_sum[r] - sum over k of m[k]
//   subset_sum[r] = sum of those m[k] whose weight, -1 or 1, has the sign of q[k]
//
// so that everything that is added up is unsigned. Buckets are taken in groups of four: a table
// holds the 16 subset sums of a group, of 14 bits, as two digits of 7, and one byte shuffle
// (vpshufb, tbl) looks a digit up by the four weight bits of as many rows as a register has bytes.
// The digits of two groups are added as bytes, then even and odd bytes as 16-bit integers. It is
// the lookup of T-MAC (Wei et al., 2024) made exact.
//
// Packed bits: 8 buckets of a row to a byte as stored, 64 rows to a tile. In a tile the byte of row
// r is byte 2 * r, or 2 * (r - 32) + 1 from row 32 on, so that even and odd bytes are rows in
// order:
//
//   byte[row / 64][bucket / 8][64]
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_KERNELS_H_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_KERNELS_H_

#include <cstdint>

#include "engine/codecs/rounded_input.h"

namespace ultrasketch::fold_internal {

inline constexpr int64_t kRowsPerTile = 64;
inline constexpr int64_t kBucketsPerByte = 8;
// Bytes of the tables of 8 buckets of a token: [digit, low first][group of 4 buckets][16].
inline constexpr int64_t kTableBytes = 64;
// The largest integer of a rounded sketch: four of them are less than 2^14.
inline constexpr int32_t kMaxFoldInteger = 4095;

inline constexpr int64_t TileByte(int64_t row) { return 2 * (row % 32) + row / 32; }

struct FoldKernels {
  const char* name;  // "avx512", "avx2", "portable"

  // RoundInput of rounded_input.h, with a limit of at most kMaxFoldInteger.
  RoundedInput (*round)(const float* z, int64_t num_buckets, int64_t padded_buckets, int32_t limit,
                        int16_t* q);

  // q [num_bytes * 8] to tables [num_bytes][kTableBytes].
  void (*build_tables)(const int16_t* q, int64_t num_bytes, uint8_t* tables);

  // subset_sums[t][r] of the rows of a tile, for num_tokens >= 1 tokens. `bits` is
  // [num_bytes][kRowsPerTile]; `tables` has a stride of num_bytes * kTableBytes between tokens.
  void (*sum_subsets)(const uint8_t* bits, int64_t num_bytes, const uint8_t* tables,
                      int64_t num_tokens, uint32_t* subset_sums);

  // y[r] = row_scales[r] * (input.scale * (2 * subset_sums[r] - input.total)), or y[r] += it, for
  // the first num_rows rows of a tile.
  void (*scale)(const uint32_t* subset_sums, RoundedInput input, const float* row_scales,
                int64_t num_rows, bool accumulate, float* y);
};

// The fastest that this processor can run.
const FoldKernels& GetFoldKernels();

// Those of a given instruction set; null when this processor cannot run it.
const FoldKernels* FindFoldKernels(const char* name);

extern const FoldKernels kAvx512FoldKernels;
extern const FoldKernels kAvx2FoldKernels;
extern const FoldKernels kPortableFoldKernels;

}  // namespace ultrasketch::fold_internal

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_KERNELS_H_
