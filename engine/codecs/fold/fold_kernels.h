// The sign-bit product on a CPU, one implementation per instruction set.
//
// Buckets are taken in groups of four. For each token and group a table holds the 16 sums
//
//   table[group][n] = sum over j < 4 of (bit j of n ? +1 : -1) * z[4 * group + j]
//
// and four weights of a row are one lookup by their four bits, one addition: no multiplication.
// A table is one 512-bit register, and one `vpermps` looks it up for 16 rows.
//
// Packed bits, 32 buckets of a row to a word; 16 rows of words are one cache line:
//
//   word[superblock][bucket / 32][block of the superblock][row % 16]
//
// A superblock is kBlocksPerSuperblock blocks of 16 rows (the last one may have fewer), so that a
// table that is loaded once serves 64 rows and the weights are read in one stream.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_KERNELS_H_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_KERNELS_H_

#include <cstdint>
#include <vector>

namespace ultrasketch::fold_internal {

inline constexpr int64_t kRowsPerBlock = 16;
inline constexpr int64_t kBlocksPerSuperblock = 4;
inline constexpr int64_t kBucketsPerWord = 32;
inline constexpr int64_t kGroupsPerWord = 8;
inline constexpr int64_t kTableEntries = 16;
inline constexpr int64_t kMaxTokensPerTile = 4;

struct FoldKernels {
  const char* name;  // "avx512", "avx2", "portable"

  // z [num_words * 32] to table [num_words * 8][16].
  void (*build_tables)(const float* z, int64_t num_words, float* tables);

  // sums[t][block * 16 + lane] = sum of the looked-up entries, in order of groups, for the
  // num_blocks blocks of one superblock and 1 to kMaxTokensPerTile tokens. `tables` has a stride of
  // table_stride floats per token, `sums` one of num_blocks * 16.
  void (*multiply)(const uint32_t* words, int64_t num_words, int64_t num_blocks,
                   const float* tables, int64_t table_stride, int64_t num_tokens, float* sums);
};

// Those that this processor can run, fastest first; the last is the portable one.
const std::vector<const FoldKernels*>& AvailableFoldKernels();

extern const FoldKernels kPortableFoldKernels;
#if defined(__x86_64__)
extern const FoldKernels kAvx2FoldKernels;
extern const FoldKernels kAvx512FoldKernels;
#endif

}  // namespace ultrasketch::fold_internal

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_KERNELS_H_
