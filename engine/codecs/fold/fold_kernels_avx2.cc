// The sign-bit product with AVX2: see fold_kernels.h for tables and layout.
//
// A table of 16 entries is two registers of 8; the fourth bit of an index chooses between them.
// Half a block, 8 rows, at a time.
#if defined(__x86_64__)

#include <immintrin.h>

#include "engine/codecs/fold/fold_kernels.h"

#define US_AVX2 __attribute__((target("avx2")))

namespace ultrasketch::fold_internal {
namespace {

constexpr int kLanes = 8;
constexpr int kHalves = 2;

US_AVX2 void BuildTables(const float* z, int64_t num_words, float* tables) {
  const __m256 flip0 = _mm256_setr_ps(-0.0f, 0.0f, -0.0f, 0.0f, -0.0f, 0.0f, -0.0f, 0.0f);
  const __m256 flip1 = _mm256_setr_ps(-0.0f, -0.0f, 0.0f, 0.0f, -0.0f, -0.0f, 0.0f, 0.0f);
  const __m256 flip2 = _mm256_setr_ps(-0.0f, -0.0f, -0.0f, -0.0f, 0.0f, 0.0f, 0.0f, 0.0f);
  for (int64_t group = 0; group < num_words * kGroupsPerWord; ++group) {
    const float* values = z + group * 4;
    const __m256 low = _mm256_add_ps(_mm256_xor_ps(_mm256_set1_ps(values[0]), flip0),
                                     _mm256_xor_ps(_mm256_set1_ps(values[1]), flip1));
    const __m256 third = _mm256_xor_ps(_mm256_set1_ps(values[2]), flip2);
    const __m256 fourth = _mm256_set1_ps(values[3]);
    float* table = tables + group * kTableEntries;
    _mm256_storeu_ps(table, _mm256_add_ps(low, _mm256_sub_ps(third, fourth)));
    _mm256_storeu_ps(table + kLanes, _mm256_add_ps(low, _mm256_add_ps(third, fourth)));
  }
}

template <int kTokens>
US_AVX2 void MultiplyBlock(const uint32_t* words, int64_t word_stride, int64_t num_words,
                           const float* tables, int64_t table_stride, int64_t sum_stride,
                           float* sums) {
  __m256 totals[kTokens][kHalves];
  for (int token = 0; token < kTokens; ++token) {
    for (int half = 0; half < kHalves; ++half) totals[token][half] = _mm256_setzero_ps();
  }
  for (int64_t word = 0; word < num_words; ++word) {
    __m256i indices[kHalves];
    for (int half = 0; half < kHalves; ++half) {
      indices[half] = _mm256_loadu_si256(
          reinterpret_cast<const __m256i*>(words + word * word_stride + half * kLanes));
    }
    const float* table = tables + word * kGroupsPerWord * kTableEntries;
    for (int group = 0; group < kGroupsPerWord; ++group) {
#pragma GCC unroll 2
      for (int token = 0; token < kTokens; ++token) {
        const float* entries = table + token * table_stride + group * kTableEntries;
        const __m256 lower = _mm256_loadu_ps(entries);
        const __m256 upper = _mm256_loadu_ps(entries + kLanes);
#pragma GCC unroll 2
        for (int half = 0; half < kHalves; ++half) {
          const __m256 choice = _mm256_castsi256_ps(_mm256_slli_epi32(indices[half], 28));
          const __m256 value =
              _mm256_blendv_ps(_mm256_permutevar8x32_ps(lower, indices[half]),
                               _mm256_permutevar8x32_ps(upper, indices[half]), choice);
          totals[token][half] = _mm256_add_ps(totals[token][half], value);
        }
      }
      for (int half = 0; half < kHalves; ++half) {
        indices[half] = _mm256_srli_epi32(indices[half], 4);
      }
    }
  }
  for (int token = 0; token < kTokens; ++token) {
    for (int half = 0; half < kHalves; ++half) {
      _mm256_storeu_ps(sums + token * sum_stride + half * kLanes, totals[token][half]);
    }
  }
}

void Multiply(const uint32_t* words, int64_t num_words, int64_t num_blocks, const float* tables,
              int64_t table_stride, int64_t num_tokens, float* sums) {
  const int64_t word_stride = num_blocks * kRowsPerBlock;
  for (int64_t block = 0; block < num_blocks; ++block) {
    const uint32_t* block_words = words + block * kRowsPerBlock;
    float* block_sums = sums + block * kRowsPerBlock;
    int64_t token = 0;
    for (; token + 2 <= num_tokens; token += 2) {
      MultiplyBlock<2>(block_words, word_stride, num_words, tables + token * table_stride,
                       table_stride, word_stride, block_sums + token * word_stride);
    }
    if (token < num_tokens) {
      MultiplyBlock<1>(block_words, word_stride, num_words, tables + token * table_stride,
                       table_stride, word_stride, block_sums + token * word_stride);
    }
  }
}

}  // namespace

const FoldKernels kAvx2FoldKernels = {"avx2", BuildTables, Multiply};

}  // namespace ultrasketch::fold_internal

#endif  // defined(__x86_64__)
