// The AbsMaxMin product, for the instruction set of the file that includes this.
//
//   block of 32 rows and T tokens: 2 * T accumulators of 16 lanes
//   per bucket: 2 * 7 operations to unpack (a few buckets serve many columns)
//   per column: 2 * hash_rows loads of keys, 2 * (hash_rows - 1) maxima, 2 * 2 operations for the
//   sign, then 2 * T multiply-adds
//
// One token: bound by the loads and maxima; decoded weights stay in registers. Many tokens: bound
// by the multiply-adds; a chunk of columns is decoded once and serves all tokens from the
// first-level cache.
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_KERNELS_IMPL_H_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_KERNELS_IMPL_H_

#include "engine/base/vector16.h"
#include "engine/codecs/absmaxmin/absmaxmin_kernels.h"

namespace ultrasketch::absmaxmin_internal {
namespace {

#if defined(__AVX512F__)
constexpr int kTileTokens = 8;
#elif defined(__AVX2__)
constexpr int kTileTokens = 3;
#else
constexpr int kTileTokens = 1;
#endif

constexpr int kVectors = 2;  // of 16 rows each

// Parts of a block: registers of kPartLanes rows.
constexpr int kBlockParts = kVectors * kParts;

inline UintPart LoadUint(const uint32_t* data) {
  UintPart part;
  __builtin_memcpy(&part, data, sizeof(part));
  return part;
}

void Unpack(const uint32_t* words, int64_t num_buckets, int64_t bits, float unit, int64_t hash_row,
            uint32_t* keys) {
  const int64_t codes_per_word = 32 / bits;
  const int sign_shift = static_cast<int>(32 - bits);
  const UintPart tag = UintPart{} + static_cast<uint32_t>((7 - hash_row) << 1);
  for (int64_t first = 0; first < num_buckets; first += codes_per_word, words += kRowsPerBlock) {
    const int64_t count =
        num_buckets - first < codes_per_word ? num_buckets - first : codes_per_word;
    for (int part = 0; part < kBlockParts; ++part) {
      const UintPart word = LoadUint(words + part * kPartLanes);
      uint32_t* out = keys + first * kRowsPerBlock + part * kPartLanes;
      for (int64_t code = 0; code < count; ++code, out += kRowsPerBlock) {
        const auto up = static_cast<int>(sign_shift - code * bits);
        const IntPart level = BitCast<IntPart>(word << up) >> sign_shift;
        const FloatPart value = __builtin_convertvector(level, FloatPart) * unit;
        const UintPart value_bits = BitCast<UintPart>(value);
        const UintPart key = (value_bits & 0x7fffffffu) | (value_bits >> 31) | tag;
        __builtin_memcpy(out, &key, sizeof(key));
      }
    }
  }
}

// 16 rows of a column's weight: the value that the largest of its keys stands for.
template <int kHashRows>
inline FloatPart DecodePart(const uint32_t* const (&keys)[kHashRows], int64_t lane) {
  IntPart key = BitCast<IntPart>(LoadUint(keys[0] + lane));
#pragma GCC unroll 8
  for (int hash_row = 1; hash_row < kHashRows; ++hash_row) {
    const IntPart other = BitCast<IntPart>(LoadUint(keys[hash_row] + lane));
    key = other > key ? other : key;
  }
  const UintPart bits = BitCast<UintPart>(key);
  return BitCast<FloatPart>((bits & ~15u) | (bits << 31));
}

template <int kHashRows>
inline Float16 DecodeVector(const uint32_t* const (&keys)[kHashRows], int64_t lane) {
  Float16 result;
  result.a = DecodePart<kHashRows>(keys, lane);
#if !defined(__AVX512F__)
  result.b = DecodePart<kHashRows>(keys, lane + kPartLanes);
#if !defined(__AVX2__)
  result.c = DecodePart<kHashRows>(keys, lane + 2 * kPartLanes);
  result.d = DecodePart<kHashRows>(keys, lane + 3 * kPartLanes);
#endif
#endif
  return result;
}

template <int kHashRows, typename Take>
inline void ForColumns(const uint32_t* keys, const int32_t* offsets, int64_t table_stride,
                       int64_t num_columns, Take take) {
  for (int64_t column = 0; column < num_columns; ++column) {
    const uint32_t* column_keys[kHashRows];
#pragma GCC unroll 8
    for (int hash_row = 0; hash_row < kHashRows; ++hash_row) {
      column_keys[hash_row] = keys + offsets[hash_row * table_stride + column];
    }
    take(column, DecodeVector<kHashRows>(column_keys, 0), DecodeVector<kHashRows>(column_keys, 16));
  }
}

template <int kHashRows>
void DecodeColumns(const uint32_t* keys, const int32_t* offsets, int64_t table_stride,
                   int64_t num_columns, float* weights) {
  ForColumns<kHashRows>(keys, offsets, table_stride, num_columns,
                        [&](int64_t column, const Float16& low, const Float16& high) {
                          Store(low, weights + column * kRowsPerBlock);
                          Store(high, weights + column * kRowsPerBlock + 16);
                        });
}

template <int kHashRows>
void DecodeMultiplyColumns(const uint32_t* keys, const int32_t* offsets, int64_t table_stride,
                           int64_t num_columns, const float* x, float* sums) {
  Float16 low_sum = Load(sums);
  Float16 high_sum = Load(sums + 16);
  ForColumns<kHashRows>(keys, offsets, table_stride, num_columns,
                        [&](int64_t column, const Float16& low, const Float16& high) {
                          const Float16 value(x[column]);
                          low_sum = MultiplyAdd(low, value, low_sum);
                          high_sum = MultiplyAdd(high, value, high_sum);
                        });
  Store(low_sum, sums);
  Store(high_sum, sums + 16);
}

using DecodeFunction = void (*)(const uint32_t*, const int32_t*, int64_t, int64_t, float*);
using DecodeMultiplyFunction = void (*)(const uint32_t*, const int32_t*, int64_t, int64_t,
                                        const float*, float*);

void Decode(const uint32_t* keys, const int32_t* offsets, int64_t table_stride, int64_t hash_rows,
            int64_t num_columns, float* weights) {
  constexpr DecodeFunction kByHashRows[] = {DecodeColumns<1>, DecodeColumns<2>, DecodeColumns<3>,
                                            DecodeColumns<4>, DecodeColumns<5>, DecodeColumns<6>,
                                            DecodeColumns<7>, DecodeColumns<8>};
  kByHashRows[hash_rows - 1](keys, offsets, table_stride, num_columns, weights);
}

void DecodeMultiply(const uint32_t* keys, const int32_t* offsets, int64_t table_stride,
                    int64_t hash_rows, int64_t num_columns, const float* x, float* sums) {
  constexpr DecodeMultiplyFunction kByHashRows[] = {
      DecodeMultiplyColumns<1>, DecodeMultiplyColumns<2>, DecodeMultiplyColumns<3>,
      DecodeMultiplyColumns<4>, DecodeMultiplyColumns<5>, DecodeMultiplyColumns<6>,
      DecodeMultiplyColumns<7>, DecodeMultiplyColumns<8>};
  kByHashRows[hash_rows - 1](keys, offsets, table_stride, num_columns, x, sums);
}

template <int kTokens>
void MultiplyTile(const float* weights, int64_t num_columns, const float* x, int64_t x_stride,
                  float* sums) {
  Float16 tile_sums[kTokens][kVectors];
#pragma GCC unroll 8
  for (int token = 0; token < kTokens; ++token) {
#pragma GCC unroll 2
    for (int vector = 0; vector < kVectors; ++vector) {
      tile_sums[token][vector] = Load(sums + token * kRowsPerBlock + vector * 16);
    }
  }
  for (int64_t column = 0; column < num_columns; ++column) {
    const Float16 low = Load(weights + column * kRowsPerBlock);
    const Float16 high = Load(weights + column * kRowsPerBlock + 16);
#pragma GCC unroll 8
    for (int token = 0; token < kTokens; ++token) {
      const Float16 value(x[token * x_stride + column]);
      tile_sums[token][0] = MultiplyAdd(low, value, tile_sums[token][0]);
      tile_sums[token][1] = MultiplyAdd(high, value, tile_sums[token][1]);
    }
  }
#pragma GCC unroll 8
  for (int token = 0; token < kTokens; ++token) {
#pragma GCC unroll 2
    for (int vector = 0; vector < kVectors; ++vector) {
      Store(tile_sums[token][vector], sums + token * kRowsPerBlock + vector * 16);
    }
  }
}

void Multiply(const float* weights, int64_t num_columns, const float* x, int64_t x_stride,
              int64_t num_tokens, float* sums) {
  int64_t token = 0;
  for (; token + kTileTokens <= num_tokens; token += kTileTokens) {
    MultiplyTile<kTileTokens>(weights, num_columns, x + token * x_stride, x_stride,
                              sums + token * kRowsPerBlock);
  }
  for (; token < num_tokens; ++token) {
    MultiplyTile<1>(weights, num_columns, x + token * x_stride, x_stride,
                    sums + token * kRowsPerBlock);
  }
}

}  // namespace
}  // namespace ultrasketch::absmaxmin_internal

// Defines the table of kernels called `variable`.
#define US_DEFINE_ABSMAXMIN_KERNELS(variable, name)                                   \
  namespace ultrasketch::absmaxmin_internal {                                         \
  const AbsMaxMinKernels variable = {name, Unpack, Decode, DecodeMultiply, Multiply}; \
  }

#endif  // ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_KERNELS_IMPL_H_
