// The sign-bit product with AVX-512: see fold_kernels.h for tables and layout.
//
//   per group of 4 buckets, B blocks of 16 rows and T tokens (registers: B*T sums, B words, 1
//   table)
//     T loads, B*T vpermps, B*T vaddps, B vpsrld       for 64*B*T weight bits
//
// Bound by vpermps and vaddps, one of each a cycle: 64 weight bits a cycle and core at best.
#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
// A false alarm about gcc 12's own header (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include "engine/codecs/fold/fold_kernels.h"

#define US_AVX512 __attribute__((target("avx512f,avx512dq")))

namespace ultrasketch::fold_internal {
namespace {

US_AVX512 void BuildTables(const float* z, int64_t num_words, float* tables) {
  const __m512 sign = _mm512_set1_ps(-0.0f);
  const __m512i entries = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __m512 flips[4];
  for (int bit = 0; bit < 4; ++bit) {
    const __mmask16 positive = _mm512_test_epi32_mask(entries, _mm512_set1_epi32(1 << bit));
    flips[bit] = _mm512_mask_blend_ps(positive, sign, _mm512_setzero_ps());
  }
  for (int64_t group = 0; group < num_words * kGroupsPerWord; ++group) {
    const float* values = z + group * 4;
    const __m512 low = _mm512_add_ps(_mm512_xor_ps(_mm512_set1_ps(values[0]), flips[0]),
                                     _mm512_xor_ps(_mm512_set1_ps(values[1]), flips[1]));
    const __m512 high = _mm512_add_ps(_mm512_xor_ps(_mm512_set1_ps(values[2]), flips[2]),
                                      _mm512_xor_ps(_mm512_set1_ps(values[3]), flips[3]));
    _mm512_storeu_ps(tables + group * kTableEntries, _mm512_add_ps(low, high));
  }
}

template <int kBlocks, int kTokens>
US_AVX512 void MultiplyTile(const uint32_t* words, int64_t num_words, const float* tables,
                            int64_t table_stride, float* sums) {
  __m512 totals[kTokens][kBlocks];
  for (int token = 0; token < kTokens; ++token) {
    for (int block = 0; block < kBlocks; ++block) totals[token][block] = _mm512_setzero_ps();
  }
  for (int64_t word = 0; word < num_words; ++word) {
    __m512i indices[kBlocks];
    for (int block = 0; block < kBlocks; ++block) {
      indices[block] = _mm512_loadu_si512(words + (word * kBlocks + block) * kRowsPerBlock);
    }
    const float* table = tables + word * kGroupsPerWord * kTableEntries;
#pragma GCC unroll 8
    for (int group = 0; group < kGroupsPerWord; ++group) {
#pragma GCC unroll 4
      for (int token = 0; token < kTokens; ++token) {
        const __m512 entries =
            _mm512_loadu_ps(table + token * table_stride + group * kTableEntries);
#pragma GCC unroll 4
        for (int block = 0; block < kBlocks; ++block) {
          // vpermps looks at the low four bits of an index alone.
          totals[token][block] =
              _mm512_add_ps(totals[token][block], _mm512_permutexvar_ps(indices[block], entries));
        }
      }
#pragma GCC unroll 4
      for (int block = 0; block < kBlocks; ++block) {
        indices[block] = _mm512_srli_epi32(indices[block], 4);
      }
    }
  }
  for (int token = 0; token < kTokens; ++token) {
    for (int block = 0; block < kBlocks; ++block) {
      _mm512_storeu_ps(sums + (token * kBlocks + block) * kRowsPerBlock, totals[token][block]);
    }
  }
}

using Tile = void (*)(const uint32_t*, int64_t, const float*, int64_t, float*);

template <int kBlocks>
Tile TileForTokens(int64_t num_tokens) {
  switch (num_tokens) {
    case 1:
      return MultiplyTile<kBlocks, 1>;
    case 2:
      return MultiplyTile<kBlocks, 2>;
    case 3:
      return MultiplyTile<kBlocks, 3>;
    default:
      return MultiplyTile<kBlocks, 4>;
  }
}

void Multiply(const uint32_t* words, int64_t num_words, int64_t num_blocks, const float* tables,
              int64_t table_stride, int64_t num_tokens, float* sums) {
  Tile tile = nullptr;
  switch (num_blocks) {
    case 1:
      tile = TileForTokens<1>(num_tokens);
      break;
    case 2:
      tile = TileForTokens<2>(num_tokens);
      break;
    case 3:
      tile = TileForTokens<3>(num_tokens);
      break;
    default:
      tile = TileForTokens<4>(num_tokens);
      break;
  }
  tile(words, num_words, tables, table_stride, sums);
}

}  // namespace

const FoldKernels kAvx512FoldKernels = {"avx512", BuildTables, Multiply};

}  // namespace ultrasketch::fold_internal

#endif  // defined(__x86_64__)
