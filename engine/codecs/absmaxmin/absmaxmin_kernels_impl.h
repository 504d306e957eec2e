// The AbsMaxMin product, for the instruction set of the file that includes this.
//
//   block of 32 rows, in registers of 32 bytes (AVX2); per pair of columns:
//     4 * hash_rows loads of keys, 4 * (hash_rows - 1) maxima, 4 * 4 operations for the sign
//     4 to interleave the columns of a row, then for each token 4 multiply-adds of pairs, 4
//     additions
//   per bucket: 2 * 7 operations to unpack (a few buckets serve many columns)
//
// One token: bound by these operations, 36 for 64 weights of three hash rows; decoded weights stay
// in registers. Many tokens: bound by the multiply-adds; a chunk of columns is decoded once and
// serves all tokens from the L1 cache.
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_KERNELS_IMPL_H_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_KERNELS_IMPL_H_

#include "engine/codecs/absmaxmin/absmaxmin_kernels.h"
#include "engine/codecs/integer_vector.h"

namespace ultrasketch::absmaxmin_internal {
namespace {

constexpr int kParts = static_cast<int>(kRowsPerBlock / kPartShorts);
constexpr int kTileTokens = 2;
constexpr int64_t kPairWeights = 2 * kRowsPerBlock;

void Unpack(const uint16_t* words, int64_t num_buckets, int64_t bits, int64_t hash_row,
            int16_t* keys) {
  const int64_t codes_per_word = 16 / bits;
  const auto sign_shift = static_cast<int16_t>(16 - bits);
  const auto tag = static_cast<int16_t>((7 - hash_row) << 1);
  for (int64_t first = 0; first < num_buckets; first += codes_per_word, words += kRowsPerBlock) {
    const int64_t count =
        num_buckets - first < codes_per_word ? num_buckets - first : codes_per_word;
    for (int part = 0; part < kParts; ++part) {
      ShortPart word;
      __builtin_memcpy(&word, words + part * kPartShorts, sizeof(word));
      int16_t* out = keys + first * kRowsPerBlock + part * kPartShorts;
      for (int64_t code = 0; code < count; ++code, out += kRowsPerBlock) {
        const auto up = static_cast<int16_t>(sign_shift - code * bits);
        const ShortPart level = word << up >> sign_shift;
        const ShortPart sign = level >> 15;  // 0 or -1
        const ShortPart magnitude = (level ^ sign) - sign;
        StoreShorts((magnitude << 4) - sign + tag, out);
      }
    }
  }
}

// The level of each key.
inline ShortPart LevelsOf(ShortPart keys) {
  const ShortPart magnitudes = keys >> 4;
#if defined(__AVX2__)
  // Negated where the other operand is negative, zero where that is zero.
  const ShortPart signs = keys << 15 | 1;
  return (ShortPart)_mm256_sign_epi16((__m256i)magnitudes, (__m256i)signs);
#else
  const ShortPart signs = -(keys & 1);
  return (magnitudes ^ signs) - signs;
#endif
}

// The levels of a column for the rows of a part that begins at `row`.
template <int kHashRows>
inline ShortPart DecodePart(const int16_t* keys, const AbsMaxMinColumns& columns, int64_t column,
                            int64_t row) {
  ShortPart key = LoadShorts(keys + columns.offsets[column] + row);
#pragma GCC unroll 8
  for (int hash_row = 1; hash_row < kHashRows; ++hash_row) {
    const ShortPart other =
        LoadShorts(keys + columns.offsets[hash_row * columns.table_stride + column] + row);
    key = other > key ? other : key;
  }
  return LevelsOf(key);
}

// Two columns of a part, the levels of a row side by side.
struct Pairs {
  ShortPart low;
  ShortPart high;
};

inline Pairs Interleave(ShortPart first, ShortPart second) {
#if defined(__AVX2__)
  return {(ShortPart)_mm256_unpacklo_epi16((__m256i)first, (__m256i)second),
          (ShortPart)_mm256_unpackhi_epi16((__m256i)first, (__m256i)second)};
#else
  return {__builtin_shufflevector(first, second, 0, 8, 1, 9, 2, 10, 3, 11),
          __builtin_shufflevector(first, second, 4, 12, 5, 13, 6, 14, 7, 15)};
#endif
}

// Sums of the rows of a part, in the order of Pairs.
struct PairSums {
  IntPart low;
  IntPart high;
};

inline void AddProducts(const Pairs& pairs, ShortPart inputs, PairSums& sums) {
  sums.low += MultiplyPairs(pairs.low, inputs);
  sums.high += MultiplyPairs(pairs.high, inputs);
}

// Two neighbouring inputs in all lanes.
inline ShortPart LoadInputs(const int16_t* x) {
  int32_t both;
  __builtin_memcpy(&both, x, sizeof(both));
  return (ShortPart)(IntPart{} + both);
}

inline void AddTo(IntPart integers, float unit, float* sums) {
  FloatPart part;
  __builtin_memcpy(&part, sums, sizeof(part));
  part = part + __builtin_convertvector(integers, FloatPart) * unit;
  __builtin_memcpy(sums, &part, sizeof(part));
}

// Adds the sums of a part to those of its rows.
inline void Flush(const PairSums& part, float unit, float* sums) {
#if defined(__AVX2__)
  // Interleaving has gone by halves of registers.
  const auto low = (__m256i)part.low;
  const auto high = (__m256i)part.high;
  AddTo((IntPart)_mm256_permute2x128_si256(low, high, 0x20), unit, sums);
  AddTo((IntPart)_mm256_permute2x128_si256(low, high, 0x31), unit, sums + kPartShorts / 2);
#else
  AddTo(part.low, unit, sums);
  AddTo(part.high, unit, sums + kPartShorts / 2);
#endif
}

// Calls take(pair, part, levels) for all pairs of columns and parts of a block. After an odd number
// of columns the last is taken twice.
template <int kHashRows, typename Take>
inline void ForPairs(const int16_t* keys, const AbsMaxMinColumns& columns, Take take) {
  for (int64_t column = 0; column < columns.num_columns; column += 2) {
    const int64_t next = column + 1 < columns.num_columns ? column + 1 : column;
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      take(column / 2, part,
           Interleave(DecodePart<kHashRows>(keys, columns, column, part * kPartShorts),
                      DecodePart<kHashRows>(keys, columns, next, part * kPartShorts)));
    }
  }
}

template <int kHashRows>
void DecodeColumns(const int16_t* keys, const AbsMaxMinColumns& columns, int16_t* weights) {
  ForPairs<kHashRows>(keys, columns, [&](int64_t pair, int part, const Pairs& levels) {
    int16_t* out = weights + pair * kPairWeights + part * 2 * kPartShorts;
    StoreShorts(levels.low, out);
    StoreShorts(levels.high, out + kPartShorts);
  });
}

template <int kHashRows>
void DecodeMultiplyColumns(const int16_t* keys, const AbsMaxMinColumns& columns, const int16_t* x,
                           float unit, float* sums) {
  PairSums parts[kParts] = {};
  ForPairs<kHashRows>(keys, columns, [&](int64_t pair, int part, const Pairs& levels) {
    AddProducts(levels, LoadInputs(x + 2 * pair), parts[part]);
  });
#pragma GCC unroll 4
  for (int part = 0; part < kParts; ++part) Flush(parts[part], unit, sums + part * kPartShorts);
}

void Decode(const int16_t* keys, const AbsMaxMinColumns& columns, int16_t* weights) {
  constexpr void (*kByHashRows[])(const int16_t*, const AbsMaxMinColumns&, int16_t*) = {
      DecodeColumns<1>, DecodeColumns<2>, DecodeColumns<3>, DecodeColumns<4>,
      DecodeColumns<5>, DecodeColumns<6>, DecodeColumns<7>, DecodeColumns<8>};
  kByHashRows[columns.hash_rows - 1](keys, columns, weights);
}

void DecodeMultiply(const int16_t* keys, const AbsMaxMinColumns& columns, const int16_t* x,
                    float unit, float* sums) {
  constexpr void (*kByHashRows[])(const int16_t*, const AbsMaxMinColumns&, const int16_t*, float,
                                  float*) = {DecodeMultiplyColumns<1>, DecodeMultiplyColumns<2>,
                                             DecodeMultiplyColumns<3>, DecodeMultiplyColumns<4>,
                                             DecodeMultiplyColumns<5>, DecodeMultiplyColumns<6>,
                                             DecodeMultiplyColumns<7>, DecodeMultiplyColumns<8>};
  kByHashRows[columns.hash_rows - 1](keys, columns, x, unit, sums);
}

template <int kTokens>
void MultiplyTile(const int16_t* weights, int64_t num_columns, const int16_t* x, int64_t x_stride,
                  float unit, float* sums) {
  PairSums tile[kTokens][kParts] = {};
  for (int64_t column = 0; column < num_columns; column += 2, weights += kPairWeights) {
    ShortPart inputs[kTokens];
#pragma GCC unroll 2
    for (int token = 0; token < kTokens; ++token) {
      inputs[token] = LoadInputs(x + token * x_stride + column);
    }
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      const int16_t* of_part = weights + part * 2 * kPartShorts;
      const Pairs pairs = {LoadShorts(of_part), LoadShorts(of_part + kPartShorts)};
#pragma GCC unroll 2
      for (int token = 0; token < kTokens; ++token) {
        AddProducts(pairs, inputs[token], tile[token][part]);
      }
    }
  }
#pragma GCC unroll 2
  for (int token = 0; token < kTokens; ++token) {
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      Flush(tile[token][part], unit, sums + token * kRowsPerBlock + part * kPartShorts);
    }
  }
}

void Multiply(const int16_t* weights, int64_t num_columns, const int16_t* x, int64_t x_stride,
              int64_t num_tokens, float unit, float* sums) {
  int64_t token = 0;
  for (; token + kTileTokens <= num_tokens; token += kTileTokens) {
    MultiplyTile<kTileTokens>(weights, num_columns, x + token * x_stride, x_stride, unit,
                              sums + token * kRowsPerBlock);
  }
  for (; token < num_tokens; ++token) {
    MultiplyTile<1>(weights, num_columns, x + token * x_stride, x_stride, unit,
                    sums + token * kRowsPerBlock);
  }
}

}  // namespace
}  // namespace ultrasketch::absmaxmin_internal

// Defines the table of kernels called `variable`.
#define US_DEFINE_ABSMAXMIN_KERNELS(variable, name)                                               \
  namespace ultrasketch::absmaxmin_internal {                                                     \
  const AbsMaxMinKernels variable = {name, RoundInput, Unpack, Decode, DecodeMultiply, Multiply}; \
  }

#endif  // ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_KERNELS_IMPL_H_
