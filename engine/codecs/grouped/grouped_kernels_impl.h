// The product with a grouped table, for the instruction set of the file that includes this.
//
// One token: a tile of R rows, R sums of 16 lanes
//   per 16 columns: a load of x, R loads of integers, conversions and multiplications by the scale,
//   and R multiply-adds
//   bound by reading the table; 8 rows are read at once.
//
// Many tokens: R rows are decoded to floats, 512 columns at a time, which stay in the first-level
// cache for all tokens of a block, as the block's inputs do in the second-level cache. The sums of
// a block are kept beside them.
//   tile of R rows and T tokens, per 16 columns: R loads of weights, T loads of x, R * T
//   multiply-adds
//   bound by the multiply-adds.
#ifndef ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_KERNELS_IMPL_H_
#define ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_KERNELS_IMPL_H_

#include "engine/base/vector16.h"
#include "engine/codecs/grouped/grouped_kernels.h"

namespace ultrasketch {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorRows = 8;  // for one token
constexpr int kTileRows = 4;
constexpr int kTileTokens = 6;
#else
constexpr int kVectorRows = 4;
constexpr int kTileRows = 2;
constexpr int kTileTokens = 3;
#endif

constexpr int64_t kGroupWidth = 64;  // columns
constexpr int64_t kStepBytes = 16;   // of a row, taken at once

// The processor's own prefetching starts anew with every row and comes too late where rows are
// short: the table is asked for this far ahead, in the order in which it lies.
constexpr int64_t kBytesAhead = 16384;

constexpr int64_t kChunkGroups = 8;  // decoded together
constexpr int64_t kChunkColumns = kChunkGroups * kGroupWidth;
constexpr int64_t kBlockTokens = 48;
// Floats of x that a block of tokens may have: 512 KiB.
constexpr int64_t kBlockFloats = 128 * 1024;

// Sixteen integers.
struct Int16 {
  IntPart a;
#if !defined(__AVX512F__)
  IntPart b;
#if !defined(__AVX2__)
  IntPart c, d;
#endif
#endif
};

// The bytes of one part, with their signs.
inline IntPart LoadBytesPart(const uint8_t* data) {
#if defined(__AVX512F__)
  __m128i bytes;
  __builtin_memcpy(&bytes, data, sizeof(bytes));
  return BitCast<IntPart>(_mm512_cvtepi8_epi32(bytes));
#elif defined(__AVX2__)
  int64_t bytes;
  __builtin_memcpy(&bytes, data, sizeof(bytes));
  return BitCast<IntPart>(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bytes)));
#else
  return IntPart{static_cast<int8_t>(data[0]), static_cast<int8_t>(data[1]),
                 static_cast<int8_t>(data[2]), static_cast<int8_t>(data[3])};
#endif
}

inline Int16 LoadBytes(const uint8_t* data) {
  Int16 bytes;
  bytes.a = LoadBytesPart(data);
#if !defined(__AVX512F__)
  bytes.b = LoadBytesPart(data + kPartLanes);
#if !defined(__AVX2__)
  bytes.c = LoadBytesPart(data + 2 * kPartLanes);
  bytes.d = LoadBytesPart(data + 3 * kPartLanes);
#endif
#endif
  return bytes;
}

inline FloatPart ConvertPart(IntPart v) { return __builtin_convertvector(v, FloatPart); }

inline UintPart LoadInAllLanes(const uint8_t* data) {
  uint16_t bits;
  __builtin_memcpy(&bits, data, sizeof(bits));
  return UintPart{} + bits;
}

// A scale, which is at least 0, in all lanes.
template <typename Scales>
FloatPart LoadScale(const uint8_t* stored);

template <>
inline FloatPart LoadScale<Bf16Elements>(const uint8_t* stored) {
  return BitCast<FloatPart>(LoadInAllLanes(stored) << 16);
}

template <>
inline FloatPart LoadScale<F16Elements>(const uint8_t* stored) {
  // As F16Elements: exponent and mantissa in place, the bias put right.
  return BitCast<FloatPart>((LoadInAllLanes(stored) & 0x7fffu) << 13) * 0x1p112f;
}

// The weights of a group: what a step's bytes stand for, kVectors vectors of them.
class Int8Group {
 public:
  static constexpr int kVectors = 1;
  static int64_t RowBytes(int64_t cols) { return cols; }

  Int8Group() = default;
  explicit Int8Group(FloatPart scale) : scale_(scale) {}

  template <int kVector>
  Float16 Weights(const Int16& bytes) const {
    return ForParts([this](IntPart v) { return ConvertPart(v) * scale_; }, bytes);
  }

 private:
  FloatPart scale_;
};

// The first vector has the low halves of the bytes, the second the high ones.
class Int4Group {
 public:
  static constexpr int kVectors = 2;
  static int64_t RowBytes(int64_t cols) { return (cols + 1) / 2; }

#if defined(__AVX512F__)
  Int4Group() = default;
  explicit Int4Group(FloatPart scale)
      : weights_(FloatPart{0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1} * scale) {}

  template <int kVector>
  Float16 Weights(const Int16& bytes) const {
    // Looks at the last four bits of each lane.
    const IntPart index = kVector == 0 ? bytes.a : bytes.a >> 4;
    Float16 weights;
    weights.a = BitCast<FloatPart>(
        _mm512_permutexvar_ps(BitCast<__m512i>(index), BitCast<__m512>(weights_)));
    return weights;
  }

 private:
  FloatPart weights_;  // of all sixteen integers
#else
  Int4Group() = default;
  explicit Int4Group(FloatPart scale) : scale_(scale) {}

  template <int kVector>
  Float16 Weights(const Int16& bytes) const {
    return ForParts(
        [this](IntPart v) {
          // The bytes have their signs, and so have their high halves.
          return ConvertPart(kVector == 0 ? v << 28 >> 28 : v >> 4) * scale_;
        },
        bytes);
  }

 private:
  FloatPart scale_;
#endif
};

template <typename Group>
constexpr int64_t kGroupBytes = kGroupWidth / (16 * Group::kVectors) * kStepBytes;

// Where rows of a table and their scales are.
template <typename Group, typename Scales>
struct Rows {
  Rows(const uint8_t* table_values, const uint8_t* table_scales, int64_t num_columns)
      : values(table_values),
        scales(table_scales),
        row_bytes(Group::RowBytes(num_columns)),
        num_groups((num_columns + kGroupWidth - 1) / kGroupWidth) {}

  Rows From(int64_t row) const {
    Rows rest = *this;
    rest.values += row * row_bytes;
    rest.scales += row * num_groups * Scales::kBytes;
    return rest;
  }

  FloatPart Scale(int64_t row, int64_t group) const {
    return LoadScale<Scales>(scales + (row * num_groups + group) * Scales::kBytes);
  }

  // The bytes of a group, those of an incomplete one with zeros after them in `buffer`.
  const uint8_t* Bytes(int64_t row, int64_t group, uint8_t (&buffer)[kGroupBytes<Group>]) const {
    const int64_t offset = group * kGroupBytes<Group>;
    const uint8_t* bytes = values + row * row_bytes + offset;
    if (offset + kGroupBytes<Group> <= row_bytes) return bytes;
    __builtin_memset(buffer, 0, sizeof(buffer));
    __builtin_memcpy(buffer, bytes, static_cast<uint64_t>(row_bytes - offset));
    return buffer;
  }

  // Asks for what is read a little later than a group of `num_rows` rows.
  void PrefetchAfter(int64_t num_rows, int64_t group) const {
    const uint8_t* ahead = values + num_rows * group * kGroupBytes<Group> + kBytesAhead;
    for (int64_t byte = 0; byte < num_rows * kGroupBytes<Group>; byte += 64) {
      __builtin_prefetch(ahead + byte, /*rw=*/0, /*locality=*/2);
    }
  }

  const uint8_t* values;
  const uint8_t* scales;
  int64_t row_bytes;
  int64_t num_groups;
};

inline void WriteSum(const Float16& sum, bool accumulate, float* y) {
  const float value = Sum(sum);
  *y = accumulate ? *y + value : value;
}

template <int kVector, typename Group, int kRows>
inline void AddProducts(const Group* groups, const Int16* bytes, const float* x,
                        Float16 (&sums)[kRows]) {
  const Float16 values = Load(x + 16 * kVector);
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
    sums[row] = MultiplyAdd(groups[row].template Weights<kVector>(bytes[row]), values, sums[row]);
  }
}

// Adds group `index` of kRows rows, whose bytes are at `bytes` and every `stride` on.
template <int kRows, typename Group, typename Scales>
inline void AddGroup(const Rows<Group, Scales>& rows, int64_t index, const uint8_t* bytes,
                     int64_t stride, const float* x, Float16 (&sums)[kRows]) {
  Group groups[kRows];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) groups[row] = Group(rows.Scale(row, index));
#pragma GCC unroll 4
  for (int64_t step = 0; step < kGroupBytes<Group> / kStepBytes; ++step) {
    Int16 loaded[kRows];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      loaded[row] = LoadBytes(bytes + row * stride + step * kStepBytes);
    }
    const float* step_x = x + step * 16 * Group::kVectors;
    AddProducts<0>(groups, loaded, step_x, sums);
    if constexpr (Group::kVectors > 1) AddProducts<1>(groups, loaded, step_x, sums);
  }
}

// kRows rows and one token.
template <int kRows, typename Group, typename Scales>
void MultiplyVector(const Rows<Group, Scales>& rows, const float* x, bool accumulate, float* y) {
  Float16 sums[kRows] = {};
  const int64_t num_whole_groups = rows.row_bytes / kGroupBytes<Group>;
  for (int64_t index = 0; index < num_whole_groups; ++index) {
    rows.PrefetchAfter(kRows, index);
    AddGroup(rows, index, rows.values + index * kGroupBytes<Group>, rows.row_bytes,
             x + index * kGroupWidth, sums);
  }
  if (num_whole_groups < rows.num_groups) {
    uint8_t tails[kRows][kGroupBytes<Group>];
    for (int row = 0; row < kRows; ++row) rows.Bytes(row, num_whole_groups, tails[row]);
    AddGroup(rows, num_whole_groups, tails[0], kGroupBytes<Group>,
             x + num_whole_groups * kGroupWidth, sums);
  }
  for (int row = 0; row < kRows; ++row) WriteSum(sums[row], accumulate, y + row);
}

// The columns of the groups [first_group, last_group) of a row, in the order of x.
template <typename Group, typename Scales>
void DecodeGroups(const Rows<Group, Scales>& rows, int64_t row, int64_t first_group,
                  int64_t last_group, float* out) {
  for (int64_t index = first_group; index < last_group; ++index) {
    uint8_t buffer[kGroupBytes<Group>];
    const uint8_t* bytes = rows.Bytes(row, index, buffer);
    const Group group(rows.Scale(row, index));
#pragma GCC unroll 4
    for (int64_t step = 0; step < kGroupBytes<Group> / kStepBytes; ++step) {
      const Int16 loaded = LoadBytes(bytes + step * kStepBytes);
      Store(group.template Weights<0>(loaded), out);
      if constexpr (Group::kVectors > 1) Store(group.template Weights<1>(loaded), out + 16);
      out += 16 * Group::kVectors;
    }
  }
}

// Adds `num_columns` columns, whole vectors, of kRows rows of floats to the sums [token][row].
template <int kRows, int kTokens>
inline void AddTile(const float* weights, int64_t num_columns, const float* x, int64_t x_stride,
                    Float16* stored_sums) {
  Float16 sums[kTokens][kRows];
#pragma GCC unroll 8
  for (int token = 0; token < kTokens; ++token) {
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) sums[token][row] = stored_sums[token * kRows + row];
  }
  for (int64_t k = 0; k < num_columns; k += 16) {
    Float16 w[kRows];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) w[row] = Load(weights + row * kChunkColumns + k);
#pragma GCC unroll 8
    for (int token = 0; token < kTokens; ++token) {
      const Float16 values = Load(x + token * x_stride + k);
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        sums[token][row] = MultiplyAdd(w[row], values, sums[token][row]);
      }
    }
  }
#pragma GCC unroll 8
  for (int token = 0; token < kTokens; ++token) {
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) stored_sums[token * kRows + row] = sums[token][row];
  }
}

// AddTile for any number of tokens, kTokens at a time and the rest in one tile.
template <int kRows, int kTokens>
void AddTiles(const float* weights, int64_t num_columns, const float* x, int64_t x_stride,
              int64_t num_tokens, Float16* sums) {
  int64_t token = 0;
  for (; token + kTokens <= num_tokens; token += kTokens) {
    AddTile<kRows, kTokens>(weights, num_columns, x + token * x_stride, x_stride,
                            sums + token * kRows);
  }
  if constexpr (kTokens > 1) {
    if (token < num_tokens) {
      AddTiles<kRows, kTokens - 1>(weights, num_columns, x + token * x_stride, x_stride,
                                   num_tokens - token, sums + token * kRows);
    }
  }
}

// kRows rows and up to kBlockTokens tokens.
template <int kRows, typename Group, typename Scales>
void MultiplyBlock(const Rows<Group, Scales>& rows, const float* x, int64_t x_stride,
                   int64_t num_tokens, bool accumulate, float* y, int64_t y_stride) {
  float weights[kRows * kChunkColumns];
  Float16 sums[kBlockTokens * kRows];
  for (int64_t i = 0; i < num_tokens * kRows; ++i) sums[i] = 0.0f;
  for (int64_t first = 0; first < rows.num_groups; first += kChunkGroups) {
    const int64_t last =
        first + kChunkGroups < rows.num_groups ? first + kChunkGroups : rows.num_groups;
    for (int64_t group = first; group < last; ++group) rows.PrefetchAfter(kRows, group);
    for (int row = 0; row < kRows; ++row) {
      DecodeGroups(rows, row, first, last, weights + row * kChunkColumns);
    }
    AddTiles<kRows, kTileTokens>(weights, (last - first) * kGroupWidth, x + first * kGroupWidth,
                                 x_stride, num_tokens, sums);
  }
  for (int64_t token = 0; token < num_tokens; ++token) {
    for (int row = 0; row < kRows; ++row) {
      WriteSum(sums[token * kRows + row], accumulate, y + token * y_stride + row);
    }
  }
}

template <typename Group, typename Scales>
void Multiply(const uint8_t* values, const uint8_t* scales, int64_t num_rows, int64_t cols,
              const float* x, int64_t x_stride, int64_t num_tokens, bool accumulate, float* y,
              int64_t y_stride) {
  const Rows<Group, Scales> rows(values, scales, cols);
  if (num_tokens == 1) {
    int64_t row = 0;
    for (; row + kVectorRows <= num_rows; row += kVectorRows) {
      MultiplyVector<kVectorRows>(rows.From(row), x, accumulate, y + row);
    }
    for (; row < num_rows; ++row) MultiplyVector<1>(rows.From(row), x, accumulate, y + row);
    return;
  }
  int64_t block_tokens = kBlockFloats / cols / kTileTokens * kTileTokens;
  if (block_tokens < kTileTokens) block_tokens = kTileTokens;
  if (block_tokens > kBlockTokens) block_tokens = kBlockTokens;
  for (int64_t first = 0; first < num_tokens; first += block_tokens) {
    const int64_t count = num_tokens - first < block_tokens ? num_tokens - first : block_tokens;
    const float* block_x = x + first * x_stride;
    float* block_y = y + first * y_stride;
    int64_t row = 0;
    for (; row + kTileRows <= num_rows; row += kTileRows) {
      MultiplyBlock<kTileRows>(rows.From(row), block_x, x_stride, count, accumulate, block_y + row,
                               y_stride);
    }
    for (; row < num_rows; ++row) {
      MultiplyBlock<1>(rows.From(row), block_x, x_stride, count, accumulate, block_y + row,
                       y_stride);
    }
  }
}

}  // namespace
}  // namespace ultrasketch

// Defines the table of kernels called `variable`.
#define US_DEFINE_GROUPED_KERNELS(variable, name)                                \
  namespace ultrasketch {                                                        \
  const GroupedKernels variable = {                                              \
      name, Multiply<Int8Group, Bf16Elements>, Multiply<Int8Group, F16Elements>, \
      Multiply<Int4Group, Bf16Elements>, Multiply<Int4Group, F16Elements>};      \
  }

#endif  // ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_KERNELS_IMPL_H_
