// Registers of 16-bit integers and their products, in the compilers' vector extension: the same
// source becomes AVX2 or baseline code (SSE2, NEON) by the options of the file that includes it.
// AVX-512 sources get registers of 32 bytes, too: what waits for memory, or for the L1 cache, gains
// nothing by longer ones.
//
// For kernel sources only, which include this or vector16.h: internal linkage, because object files
// of different instruction sets are linked together.
#ifndef ULTRASKETCH_ENGINE_CODECS_INTEGER_VECTOR_H_
#define ULTRASKETCH_ENGINE_CODECS_INTEGER_VECTOR_H_

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace ultrasketch {
namespace {

#if defined(__AVX2__)
constexpr int64_t kPartBytes = 32;
#else
constexpr int64_t kPartBytes = 16;
#endif
constexpr int64_t kPartShorts = kPartBytes / 2;

typedef int16_t ShortPart __attribute__((vector_size(kPartBytes)));
typedef int32_t IntPart __attribute__((vector_size(kPartBytes)));
typedef float FloatPart __attribute__((vector_size(kPartBytes)));

[[maybe_unused]] inline ShortPart LoadShorts(const int16_t* data) {
  ShortPart part;
  __builtin_memcpy(&part, data, sizeof(part));
  return part;
}

[[maybe_unused]] inline void StoreShorts(const ShortPart& part, int16_t* data) {
  __builtin_memcpy(data, &part, sizeof(part));
}

// Pairs of neighbours multiplied and added.
[[maybe_unused]] inline IntPart MultiplyPairs(ShortPart a, ShortPart b) {
#if defined(__AVX2__)
  return (IntPart)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (IntPart)_mm_madd_epi16((__m128i)a, (__m128i)b);
#elif defined(__aarch64__)
  return (IntPart)vpaddq_s32(vmull_s16(vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b)),
                             vmull_high_s16((int16x8_t)a, (int16x8_t)b));
#else
  IntPart sums;
  for (int i = 0; i < static_cast<int>(kPartBytes / 4); ++i) {
    sums[i] = int32_t{a[2 * i]} * b[2 * i] + int32_t{a[2 * i + 1]} * b[2 * i + 1];
  }
  return sums;
#endif
}

}  // namespace
}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_INTEGER_VECTOR_H_
