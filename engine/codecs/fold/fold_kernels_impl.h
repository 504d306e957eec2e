// The sign-bit product, for the instruction set of the file that includes this.
//
//   tile of 64 rows, one token; per 8 buckets, in registers of 32 bytes (AVX2):
//     2 loads of bits, 6 operations to take them apart
//     4 loads of tables, 8 shuffles and 4 additions of bytes
//     4 multiplications and 8 additions of 16-bit lanes   30 operations for 512 weights
//
// One token: bound by reading the bits where four operations start in a cycle. Several tokens: the
// bits are taken apart once for all of them, a chunk of buckets at a time, which then stays in the
// L1 cache; tables are read from the L2 cache. Bound by 24 operations, four in a cycle, and 12
// loads, two in a cycle: 6 cycles for 512 weights.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_KERNELS_IMPL_H_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_KERNELS_IMPL_H_

#include "engine/codecs/fold/fold_kernels.h"
#include "engine/codecs/rounded_input.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace ultrasketch::fold_internal {
namespace {

#if defined(__AVX512BW__)
constexpr int64_t kPartBytes = 64;
#elif defined(__AVX2__)
constexpr int64_t kPartBytes = 32;
#else
constexpr int64_t kPartBytes = 16;
#endif
constexpr int kParts = static_cast<int>(kRowsPerTile / kPartBytes);
constexpr int64_t kPartWords = kPartBytes / 2;

typedef uint8_t Bytes __attribute__((vector_size(kPartBytes)));
typedef uint16_t Words __attribute__((vector_size(kPartBytes)));

constexpr int64_t kEntries = 16;
constexpr int kDigits = 2;
constexpr int kDigitBits = 7;

// Bytes of a row whose digits a 16-bit lane can add up: each adds at most 2 * 127.
constexpr int64_t kMaxChunkBytes = 256;
// Those that are taken apart together for several tokens: 8 KiB.
constexpr int64_t kUnpackedChunkBytes = 64;

// The bits of a tile are asked for this far ahead, in the order in which they lie.
constexpr int64_t kBytesAhead = 4096;

inline Bytes LoadBytes(const uint8_t* data) {
  Bytes bytes;
  __builtin_memcpy(&bytes, data, sizeof(bytes));
  return bytes;
}

inline void StoreBytes(const Bytes& bytes, uint8_t* data) {
  __builtin_memcpy(data, &bytes, sizeof(bytes));
}

// 16 entries, in every 16 bytes of a register.
inline Bytes LoadTable(const uint8_t* table) {
#if defined(__AVX512BW__)
  // With a mask: gcc 12 takes the plain form's undefined operand for an error (gcc bug 105593).
  return (Bytes)_mm512_maskz_broadcast_i32x4(
      0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
#elif defined(__AVX2__)
  return (Bytes)_mm256_broadcastsi128_si256(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
#else
  return LoadBytes(table);
#endif
}

// table[indices[i]] of each byte; indices are below 16.
inline Bytes Lookup(Bytes table, Bytes indices) {
#if defined(__AVX512BW__)
  return (Bytes)_mm512_shuffle_epi8((__m512i)table, (__m512i)indices);
#elif defined(__AVX2__)
  return (Bytes)_mm256_shuffle_epi8((__m256i)table, (__m256i)indices);
#elif defined(__aarch64__)
  return (Bytes)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)indices);
#else
  uint8_t entries[kPartBytes];
  uint8_t bytes[kPartBytes];
  StoreBytes(table, entries);
  StoreBytes(indices, bytes);
  for (uint8_t& byte : bytes) byte = entries[byte & 15];
  return LoadBytes(bytes);
#endif
}

// The 16 subset sums of a group, as 16-bit integers.
typedef int16_t Entries __attribute__((vector_size(2 * kEntries)));

void BuildTables(const int16_t* q, int64_t num_bytes, uint8_t* tables) {
  // Which entries take the magnitude of a positive integer: those with its bit set.
  constexpr Entries kBit0 = {0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1};
  constexpr Entries kBit1 = {0, 0, -1, -1, 0, 0, -1, -1, 0, 0, -1, -1, 0, 0, -1, -1};
  constexpr Entries kBit2 = {0, 0, 0, 0, -1, -1, -1, -1, 0, 0, 0, 0, -1, -1, -1, -1};
  constexpr Entries kBit3 = {0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1};
  for (int64_t group = 0; group < 2 * num_bytes; ++group, q += 4) {
    // Negative ones are taken where the bit is not set: by all, less where it is.
    const int negatives = (q[0] < 0 ? -q[0] : 0) + (q[1] < 0 ? -q[1] : 0) + (q[2] < 0 ? -q[2] : 0) +
                          (q[3] < 0 ? -q[3] : 0);
    const Entries sums = (Entries{} + static_cast<int16_t>(negatives)) +
                         ((Entries{} + q[0]) & kBit0) + ((Entries{} + q[1]) & kBit1) +
                         ((Entries{} + q[2]) & kBit2) + ((Entries{} + q[3]) & kBit3);
    uint8_t* out = tables + group / 2 * kTableBytes + group % 2 * kEntries;
    const Entries low = sums & static_cast<int16_t>((1 << kDigitBits) - 1);
    const Entries high = sums >> kDigitBits;
#if defined(__AVX2__)
    const __m256i digits =
        _mm256_permute4x64_epi64(_mm256_packus_epi16((__m256i)low, (__m256i)high), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(digits));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * kEntries),
                     _mm256_extracti128_si256(digits, 1));
#else
    for (int entry = 0; entry < kEntries; ++entry) {
      out[entry] = static_cast<uint8_t>(low[entry]);
      out[2 * kEntries + entry] = static_cast<uint8_t>(high[entry]);
    }
#endif
  }
}

// The odd bytes, each in 16 bits: by a multiplication where shuffles keep the ports of shifts busy.
inline Words OddBytes(Bytes bytes) {
#if defined(__AVX512BW__)
  return (Words)_mm512_maddubs_epi16((__m512i)bytes, _mm512_set1_epi16(0x100));
#elif defined(__AVX2__)
  return (Words)_mm256_maddubs_epi16((__m256i)bytes, _mm256_set1_epi16(0x100));
#else
  return (Words)bytes >> 8;
#endif
}

// The two groups of 8 buckets, of the rows of a part: an index in every byte.
struct Indices {
  Bytes groups[2];
};

struct PackedBits {
  static constexpr int64_t kStepBytes = kRowsPerTile;
  static Indices Load(const uint8_t* data) {
    const Bytes bytes = LoadBytes(data);
    const Words shifted = (Words)bytes >> 4;
    return {{bytes & 15, (Bytes)shifted & 15}};
  }
};

struct UnpackedBits {
  static constexpr int64_t kStepBytes = 2 * kRowsPerTile;
  static Indices Load(const uint8_t* data) {
    return {{LoadBytes(data), LoadBytes(data + kRowsPerTile)}};
  }
};

// Adds up to kMaxChunkBytes bytes of each row of a tile to its sums.
template <typename Bits>
inline void AddChunk(const uint8_t* bits, int64_t num_bytes, const uint8_t* tables,
                     uint32_t* subset_sums) {
  Words all[kDigits][kParts] = {};  // even bytes + 2^8 * odd bytes, modulo 2^16
  Words odd[kDigits][kParts] = {};
  for (int64_t byte = 0; byte < num_bytes; ++byte) {
    if constexpr (Bits::kStepBytes == kRowsPerTile) {
      __builtin_prefetch(bits + kBytesAhead, /*rw=*/0, /*locality=*/2);
    }
    Indices indices[kParts];
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) indices[part] = Bits::Load(bits + part * kPartBytes);
#pragma GCC unroll 2
    for (int digit = 0; digit < kDigits; ++digit) {
      const Bytes first = LoadTable(tables + 2 * digit * kEntries);
      const Bytes second = LoadTable(tables + (2 * digit + 1) * kEntries);
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        const Bytes sum =
            Lookup(first, indices[part].groups[0]) + Lookup(second, indices[part].groups[1]);
        all[digit][part] += (Words)sum;
        odd[digit][part] += OddBytes(sum);
      }
    }
    bits += Bits::kStepBytes;
    tables += kTableBytes;
  }
  uint16_t sums[kDigits][kRowsPerTile];
#pragma GCC unroll 2
  for (int digit = 0; digit < kDigits; ++digit) {
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      const Words even = all[digit][part] - (odd[digit][part] << 8);
      uint16_t* out = sums[digit] + part * kPartWords;
      __builtin_memcpy(out, &even, sizeof(even));
      __builtin_memcpy(out + kRowsPerTile / 2, &odd[digit][part], sizeof(even));
    }
  }
  for (int64_t row = 0; row < kRowsPerTile; ++row) {
    subset_sums[row] += sums[0][row] + (uint32_t{sums[1][row]} << kDigitBits);
  }
}

void Unpack(const uint8_t* bits, int64_t num_bytes, uint8_t* unpacked) {
  for (int64_t byte = 0; byte < num_bytes; ++byte) {
#pragma GCC unroll 4
    for (int64_t part = 0; part < kParts; ++part) {
      const Indices indices = PackedBits::Load(bits + part * kPartBytes);
      StoreBytes(indices.groups[0], unpacked + part * kPartBytes);
      StoreBytes(indices.groups[1], unpacked + kRowsPerTile + part * kPartBytes);
    }
    bits += kRowsPerTile;
    unpacked += 2 * kRowsPerTile;
  }
}

void SumSubsets(const uint8_t* bits, int64_t num_bytes, const uint8_t* tables, int64_t num_tokens,
                uint32_t* subset_sums) {
  __builtin_memset(subset_sums, 0,
                   static_cast<uint64_t>(num_tokens * kRowsPerTile) * sizeof(*subset_sums));
  if (num_tokens == 1) {
    for (int64_t first = 0; first < num_bytes; first += kMaxChunkBytes) {
      const int64_t count = num_bytes - first < kMaxChunkBytes ? num_bytes - first : kMaxChunkBytes;
      AddChunk<PackedBits>(bits + first * kRowsPerTile, count, tables + first * kTableBytes,
                           subset_sums);
    }
    return;
  }
  alignas(64) uint8_t unpacked[kUnpackedChunkBytes * UnpackedBits::kStepBytes];
  for (int64_t first = 0; first < num_bytes; first += kUnpackedChunkBytes) {
    const int64_t count =
        num_bytes - first < kUnpackedChunkBytes ? num_bytes - first : kUnpackedChunkBytes;
    Unpack(bits + first * kRowsPerTile, count, unpacked);
    for (int64_t token = 0; token < num_tokens; ++token) {
      AddChunk<UnpackedBits>(unpacked, count, tables + (token * num_bytes + first) * kTableBytes,
                             subset_sums + token * kRowsPerTile);
    }
  }
}

void Scale(const uint32_t* subset_sums, RoundedInput input, const float* row_scales,
           int64_t num_rows, bool accumulate, float* y) {
  const auto total = static_cast<uint32_t>(input.total);
  const auto value = [&](int64_t row) {
    const auto sum = static_cast<int32_t>(2 * subset_sums[row] - total);
    return row_scales[row] * (input.scale * static_cast<float>(sum));
  };
  if (accumulate) {
    for (int64_t row = 0; row < num_rows; ++row) y[row] += value(row);
  } else {
    for (int64_t row = 0; row < num_rows; ++row) y[row] = value(row);
  }
}

}  // namespace
}  // namespace ultrasketch::fold_internal

// Defines the table of kernels called `variable`.
#define US_DEFINE_FOLD_KERNELS(variable, name)                                     \
  namespace ultrasketch::fold_internal {                                           \
  const FoldKernels variable = {name, RoundInput, BuildTables, SumSubsets, Scale}; \
  }

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_KERNELS_IMPL_H_
