// The product with a grouped table, for the instruction set of the file that includes this.
//
//   tile of R rows and T tokens; per group of 64 columns, in registers of 32 bytes (AVX2):
//     R * 4 loads that widen bytes to 16 bits, R loads of scales
//     R * T * (4 multiply-adds of pairs, 3 additions, 1 conversion, 1 multiplication, 1 addition)
//
// One token: 4 rows at once, bound by reading the table. Several: 8 tokens at once, bound by the
// operations, 10 for 64 products; a strip of rows is read from memory once and stays in the L2
// cache for the other tokens, a chunk of columns of the inputs stays in the L1 cache for the rows
// of a strip.
#ifndef ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_KERNELS_IMPL_H_
#define ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_KERNELS_IMPL_H_

#include "engine/codecs/grouped/grouped_kernels.h"
#include "engine/codecs/integer_vector.h"

namespace ultrasketch {
namespace {

// Sixteen 16-bit integers, eight of 32 bits or eight floats are one register or two.
constexpr int kParts = static_cast<int>(32 / kPartBytes);

typedef int8_t BytePart __attribute__((vector_size(kPartBytes / 2)));

struct Short16 {
  ShortPart parts[kParts];
};
struct Float8 {
  FloatPart parts[kParts];
};

constexpr int64_t kGroupWidth = 64;  // columns
constexpr int kGroupVectors = static_cast<int>(kGroupWidth / 16);

constexpr int kVectorRows = 4;  // for one token
constexpr int kTileTokens = 8;  // for several
constexpr int64_t kStripRows = 16;
constexpr int64_t kChunkGroups = 8;   // of columns, for several tokens
constexpr int64_t kScaleGroups = 32;  // whose scales are converted together

// The processor's own prefetching begins again with every row and comes too late where rows are
// short: the table is asked for this far ahead, in the order in which it lies.
constexpr int64_t kBytesAhead = 16384;

// Bytes with their signs.
inline ShortPart LoadBytesPart(const uint8_t* data) {
#if defined(__AVX2__)
  return (ShortPart)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data)));
#else
  BytePart bytes;
  __builtin_memcpy(&bytes, data, sizeof(bytes));
  return __builtin_convertvector(bytes, ShortPart);
#endif
}

inline Short16 LoadBytes(const uint8_t* data) {
  Short16 loaded;
#pragma GCC unroll 2
  for (int part = 0; part < kParts; ++part) {
    loaded.parts[part] = LoadBytesPart(data + part * kPartBytes / 2);
  }
  return loaded;
}

inline Short16 LoadIntegers(const int16_t* data) {
  Short16 loaded;
#pragma GCC unroll 2
  for (int part = 0; part < kParts; ++part) {
    loaded.parts[part] = LoadShorts(data + part * kPartShorts);
  }
  return loaded;
}

// A group's integers in the order of the input.
struct Int8Values {
  static constexpr int64_t kGroupBytes = kGroupWidth;
  static int64_t RowBytes(int64_t cols) { return cols; }

  static void Load(const uint8_t* bytes, Short16 (&values)[kGroupVectors]) {
#pragma GCC unroll 4
    for (int i = 0; i < kGroupVectors; ++i) values[i] = LoadBytes(bytes + 16 * i);
  }
};

struct Int4Values {
  static constexpr int64_t kGroupBytes = kGroupWidth / 2;
  static int64_t RowBytes(int64_t cols) { return (cols + 1) / 2; }

  static void Load(const uint8_t* bytes, Short16 (&values)[kGroupVectors]) {
#pragma GCC unroll 2
    for (int i = 0; i < kGroupVectors / 2; ++i) {
      const Short16 pairs = LoadBytes(bytes + 16 * i);
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part) {
        values[2 * i].parts[part] = pairs.parts[part] << 12 >> 12;
        values[2 * i + 1].parts[part] = pairs.parts[part] >> 4;
      }
    }
  }
};

// Stored scales, which are at least 0, to floats.
struct Bf16Scales {
  static void Convert(const uint8_t* stored, int64_t count, float* scales) {
    for (int64_t i = 0; i < count; ++i) {
      uint16_t bits;
      __builtin_memcpy(&bits, stored + 2 * i, sizeof(bits));
      const uint32_t word = uint32_t{bits} << 16;
      __builtin_memcpy(scales + i, &word, sizeof(word));
    }
  }
};

struct F16Scales {
  static void Convert(const uint8_t* stored, int64_t count, float* scales) {
    for (int64_t i = 0; i < count; ++i) {
      uint16_t bits;
      __builtin_memcpy(&bits, stored + 2 * i, sizeof(bits));
      // Exponent and mantissa in place, the exponent's bias put right by a multiplication, which
      // also makes subnormals come out exactly.
      const uint32_t word = (bits & 0x7fffu) << 13;
      float scaled;
      __builtin_memcpy(&scaled, &word, sizeof(scaled));
      scales[i] = scaled * 0x1p112f;
    }
  }
};

// A table as stored.
template <typename Values>
struct Table {
  Table(const uint8_t* table_values, const uint8_t* table_scales, int64_t cols)
      : values(table_values),
        scales(table_scales),
        row_bytes(Values::RowBytes(cols)),
        num_groups((cols + kGroupWidth - 1) / kGroupWidth),
        num_whole_groups(row_bytes / Values::kGroupBytes) {}

  const uint8_t* Bytes(int64_t row, int64_t group) const {
    return values + row * row_bytes + group * Values::kGroupBytes;
  }
  template <typename Scales>
  void LoadScales(int64_t row, int64_t group, int64_t count, float* out) const {
    Scales::Convert(scales + 2 * (row * num_groups + group), count, out);
  }
  // The bytes of the incomplete group of a row, with zeros after them.
  void CopyTail(int64_t row, uint8_t (&tail)[Values::kGroupBytes]) const {
    __builtin_memset(tail, 0, sizeof(tail));
    __builtin_memcpy(tail, Bytes(row, num_whole_groups),
                     static_cast<uint64_t>(row_bytes - num_whole_groups * Values::kGroupBytes));
  }

  const uint8_t* values;
  const uint8_t* scales;
  int64_t row_bytes;
  int64_t num_groups;
  int64_t num_whole_groups;
};

inline const int16_t* Integers(GroupedInputs inputs, int64_t token, int64_t group) {
  return reinterpret_cast<const int16_t*>(inputs.data + token * inputs.stride +
                                          kGroupedIntegersOffset) +
         group * kGroupWidth;
}

inline float InputScale(GroupedInputs inputs, int64_t token) {
  RoundedInput input;
  __builtin_memcpy(&input, inputs.data + token * inputs.stride, sizeof(input));
  return input.scale;
}

// Adds groups of kRows rows and kTokens tokens. Rows are row_stride bytes apart, their scales
// scale_stride floats; `integers` are those of the first token's first group. As many bytes are
// asked for from `ahead` on.
template <typename Values, int kRows, int kTokens>
inline void AddGroups(const uint8_t* bytes, int64_t row_stride, const float* scales,
                      int64_t scale_stride, int64_t num_groups, const int16_t* integers,
                      int64_t integer_stride, const uint8_t* ahead,
                      Float8 (&sums)[kTokens][kRows]) {
  for (int64_t group = 0; group < num_groups; ++group) {
    if (ahead != nullptr) {
      for (int64_t byte = 0; byte < kRows * Values::kGroupBytes; byte += 64) {
        __builtin_prefetch(ahead + group * kRows * Values::kGroupBytes + byte, /*rw=*/0,
                           /*locality=*/2);
      }
    }
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) {
      Short16 values[kGroupVectors];
      Values::Load(bytes + row * row_stride + group * Values::kGroupBytes, values);
      const FloatPart scale = FloatPart{} + scales[row * scale_stride + group];
#pragma GCC unroll 8
      for (int token = 0; token < kTokens; ++token) {
        const int16_t* of_token = integers + token * integer_stride + group * kGroupWidth;
        Short16 inputs[kGroupVectors];
#pragma GCC unroll 4
        for (int i = 0; i < kGroupVectors; ++i) inputs[i] = LoadIntegers(of_token + 16 * i);
#pragma GCC unroll 2
        for (int part = 0; part < kParts; ++part) {
          const IntPart products = (MultiplyPairs(values[0].parts[part], inputs[0].parts[part]) +
                                    MultiplyPairs(values[1].parts[part], inputs[1].parts[part])) +
                                   (MultiplyPairs(values[2].parts[part], inputs[2].parts[part]) +
                                    MultiplyPairs(values[3].parts[part], inputs[3].parts[part]));
          FloatPart& sum = sums[token][row].parts[part];
          sum = sum + __builtin_convertvector(products, FloatPart) * scale;
        }
      }
    }
  }
}

inline void WriteSum(const Float8& lanes, float input_scale, bool accumulate, float* y) {
  float v[8];
  __builtin_memcpy(v, &lanes, sizeof(v));
  const float sum = ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
  const float value = input_scale * sum;
  *y = accumulate ? *y + value : value;
}

// kRows rows from `row` on and one token.
template <typename Values, typename Scales, int kRows>
void MultiplyVector(const Table<Values>& table, int64_t row, GroupedInputs inputs, bool accumulate,
                    float* y) {
  Float8 sums[1][kRows] = {};
  float scales[kRows][kScaleGroups];
  for (int64_t first = 0; first < table.num_groups; first += kScaleGroups) {
    const int64_t left = table.num_groups - first;
    const int64_t count = left < kScaleGroups ? left : kScaleGroups;
    for (int i = 0; i < kRows; ++i) {
      table.template LoadScales<Scales>(row + i, first, count, scales[i]);
    }
    const bool has_tail = first + count > table.num_whole_groups;
    AddGroups<Values, kRows, 1>(
        table.Bytes(row, first), table.row_bytes, scales[0], kScaleGroups,
        has_tail ? count - 1 : count, Integers(inputs, 0, first), 0,
        table.Bytes(row, 0) + kRows * first * Values::kGroupBytes + kBytesAhead, sums);
    if (has_tail) {
      uint8_t tails[kRows][Values::kGroupBytes];
      for (int i = 0; i < kRows; ++i) table.CopyTail(row + i, tails[i]);
      AddGroups<Values, kRows, 1>(tails[0], Values::kGroupBytes, scales[0] + count - 1,
                                  kScaleGroups, 1, Integers(inputs, 0, first + count - 1), 0,
                                  nullptr, sums);
    }
  }
  const float input_scale = InputScale(inputs, 0);
  for (int i = 0; i < kRows; ++i) WriteSum(sums[0][i], input_scale, accumulate, y + i);
}

// A strip of up to kStripRows rows and kTokens tokens. `prefetches` the next strip.
template <typename Values, typename Scales, int kTokens>
void MultiplyStrip(const Table<Values>& table, int64_t first_row, int64_t num_rows,
                   GroupedInputs inputs, bool prefetches, bool accumulate, float* y,
                   int64_t y_stride) {
  Float8 stored[kStripRows][kTokens][1] = {};
  const int64_t integer_stride = inputs.stride / static_cast<int64_t>(sizeof(int16_t));
  for (int64_t first = 0; first < table.num_groups; first += kChunkGroups) {
    const int64_t left = table.num_groups - first;
    const int64_t count = left < kChunkGroups ? left : kChunkGroups;
    const bool has_tail = first + count > table.num_whole_groups;
    for (int64_t i = 0; i < num_rows; ++i) {
      const int64_t row = first_row + i;
      float scales[kChunkGroups];
      table.template LoadScales<Scales>(row, first, count, scales);
      Float8 sums[kTokens][1];
#pragma GCC unroll 8
      for (int token = 0; token < kTokens; ++token) sums[token][0] = stored[i][token][0];
      AddGroups<Values, 1, kTokens>(
          table.Bytes(row, first), 0, scales, 0, has_tail ? count - 1 : count,
          Integers(inputs, 0, first), integer_stride,
          prefetches ? table.Bytes(row + kStripRows, first) : nullptr, sums);
      if (has_tail) {
        uint8_t tail[Values::kGroupBytes];
        table.CopyTail(row, tail);
        AddGroups<Values, 1, kTokens>(tail, 0, scales + count - 1, 0, 1,
                                      Integers(inputs, 0, first + count - 1), integer_stride,
                                      nullptr, sums);
      }
#pragma GCC unroll 8
      for (int token = 0; token < kTokens; ++token) stored[i][token][0] = sums[token][0];
    }
  }
  for (int token = 0; token < kTokens; ++token) {
    const float input_scale = InputScale(inputs, token);
    for (int64_t i = 0; i < num_rows; ++i) {
      WriteSum(stored[i][token][0], input_scale, accumulate, y + token * y_stride + i);
    }
  }
}

template <typename Values, typename Scales>
void Multiply(const uint8_t* values, const uint8_t* scales, int64_t num_rows, int64_t cols,
              GroupedInputs inputs, int64_t num_tokens, bool accumulate, float* y,
              int64_t y_stride) {
  const Table<Values> table(values, scales, cols);
  if (num_tokens == 1) {
    int64_t row = 0;
    for (; row + kVectorRows <= num_rows; row += kVectorRows) {
      MultiplyVector<Values, Scales, kVectorRows>(table, row, inputs, accumulate, y + row);
    }
    for (; row < num_rows; ++row) {
      MultiplyVector<Values, Scales, 1>(table, row, inputs, accumulate, y + row);
    }
    return;
  }
  for (int64_t row = 0; row < num_rows; row += kStripRows) {
    const int64_t rows = num_rows - row < kStripRows ? num_rows - row : kStripRows;
    int64_t token = 0;
    const auto multiply = [&]<int kTokens>() {
      for (; token + kTokens <= num_tokens; token += kTokens) {
        MultiplyStrip<Values, Scales, kTokens>(
            table, row, rows, {inputs.data + token * inputs.stride, inputs.stride}, token == 0,
            accumulate, y + token * y_stride + row, y_stride);
      }
    };
    multiply.template operator()<kTileTokens>();
    multiply.template operator()<4>();
    multiply.template operator()<2>();
    multiply.template operator()<1>();
  }
}

}  // namespace
}  // namespace ultrasketch

// Defines the table of kernels called `variable`.
#define US_DEFINE_GROUPED_KERNELS(variable, name)                    \
  namespace ultrasketch {                                            \
  const GroupedKernels variable = {name,                             \
                                   RoundInput,                       \
                                   Multiply<Int8Values, Bf16Scales>, \
                                   Multiply<Int8Values, F16Scales>,  \
                                   Multiply<Int4Values, Bf16Scales>, \
                                   Multiply<Int4Values, F16Scales>}; \
  }

#endif  // ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_KERNELS_IMPL_H_
