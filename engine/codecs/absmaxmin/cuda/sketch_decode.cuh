// Decoding of an AbsMaxMin sketch into tiles of binary16 weights in shared memory.
//
// A lane takes a column and 32 rows. It reads the column's bucket of each hash row, b words of 32
// one-bit rows, keeps of them the larger magnitude bit by bit, and expands the 32 codes that are
// left to binary16. At two bits and three hash rows that is 3 loads, 13 logic operations to query
// and 38 to expand for 32 weights: 1.6 a weight, where a multiprocessor does 64 a clock.
//
// A tile of weights, for each row block in turn (4096 bytes):
//
//   [64 columns][32 rows] binary16, its 16-byte pieces swizzled: piece ^ (column / 2 % 4)
//
// so that neither the lanes that store neighbouring columns nor those that read with ldmatrix meet
// in a bank; it is also the 64-byte swizzle of wgmma's operands.
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_SKETCH_DECODE_CUH_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_SKETCH_DECODE_CUH_

#include <cuda_fp16.h>

#include <cstdint>

#include "engine/codecs/absmaxmin/cuda/sketch_matrix.h"

namespace ultrasketch::cuda {

inline constexpr int kWeightBlockBytes = kStepColumns * kSketchBlockRows * 2;
inline constexpr int kHalfStep = 32;  // columns, one a lane

// Offset in a row block's tile of eight rows of a column.
US_HOST_DEVICE constexpr int WeightPieceOffset(int column, int piece) {
  return column * (kSketchBlockRows * 2) + (piece ^ (column / 2 % 4)) * 16;
}

// The codes of a bucket, or of a column, for 32 rows.
template <int kBits>
struct Codes {
  uint32_t plane[kBits];
};

template <int kBits>
__device__ inline Codes<kBits> LoadCodes(const uint32_t* words) {
  Codes<kBits> codes;
  if constexpr (kBits % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kBits; i += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(words + i);
      codes.plane[i] = four.x;
      codes.plane[i + 1] = four.y;
      codes.plane[i + 2] = four.z;
      codes.plane[i + 3] = four.w;
    }
  } else if constexpr (kBits % 2 == 0) {
#pragma unroll
    for (int i = 0; i < kBits; i += 2) {
      const uint2 two = *reinterpret_cast<const uint2*>(words + i);
      codes.plane[i] = two.x;
      codes.plane[i + 1] = two.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kBits; ++i) codes.plane[i] = words[i];
  }
  return codes;
}

// The rows of the lowest level, whose magnitude has one bit more than the planes: a sign without
// magnitude.
template <int kBits>
__device__ inline uint32_t LowestLevels(const Codes<kBits>& codes) {
  uint32_t magnitude = codes.plane[0];
#pragma unroll
  for (int i = 1; i < kBits - 1; ++i) magnitude |= codes.plane[i];
  return codes.plane[kBits - 1] & ~magnitude;
}

// A bit of a comparison: whether a > b, given whether that is so of the bits below.
__device__ inline uint32_t Greater(uint32_t a, uint32_t b, uint32_t below) {
  return (a & ~b) | (below & ~(a ^ b));
}

// Keeps `best` except in the rows where `other` has the larger magnitude.
template <int kBits>
__device__ inline void TakeLarger(const Codes<kBits>& other, Codes<kBits>& best) {
  uint32_t larger = other.plane[0] & ~best.plane[0];
#pragma unroll
  for (int i = 1; i < kBits - 1; ++i) larger = Greater(other.plane[i], best.plane[i], larger);
  larger = Greater(LowestLevels(other), LowestLevels(best), larger);
#pragma unroll
  for (int i = 0; i < kBits; ++i) {
    best.plane[i] = (larger & other.plane[i]) | (~larger & best.plane[i]);
  }
}

// `value` moved up by `shift` bits, down by a negative one; unrolled loops know which.
__device__ inline uint32_t Shift(uint32_t value, int shift) {
  return shift >= 0 ? value << shift : value >> -shift;
}

// Four bytes of the pair of words, chosen by the four lowest nibbles of `selector`, each below 8.
__device__ inline uint32_t SelectBytes(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
  return result;
}

// The upper bytes of level * 2^(unit_exponent - kSketchShift), whose lower bytes are zero, of the
// codes of up to three bits: byte c of the pair of words is code c's.
template <int kBits>
__device__ inline uint2 ShortCodeTable(int unit_exponent) {
  const auto one = static_cast<uint32_t>(unit_exponent + 15 - kSketchShift) << 2;
  if constexpr (kBits == 2) {
    // 0, 1, -2, -1
    return {one << 8 | (one + 4 + 128) << 16 | (one + 128) << 24, 0};
  } else {
    // 0, 1, 2, 3, -4, -1, -2, -3
    const uint32_t magnitudes = one << 8 | (one + 4) << 16 | (one + 6) << 24;
    return {magnitudes, 0x80808080u | magnitudes | (one + 8)};
  }
}

// 32 rows of a column as binary16: words[4 * j + i] are rows 8 * j + 2 * i and the next.
template <int kBits>
__device__ inline void ExpandShortCodes(const Codes<kBits>& codes, uint2 table,
                                        uint32_t (&words)[16]) {
  uint32_t nibbles[4];  // eight codes each, of rows 8 * j and following
  if constexpr (kBits == 2) {
    const uint32_t even = (codes.plane[0] & 0x55555555u) | (codes.plane[1] << 1 & 0xaaaaaaaau);
    const uint32_t odd = (codes.plane[0] >> 1 & 0x55555555u) | (codes.plane[1] & 0xaaaaaaaau);
    nibbles[0] = even & 0x33333333u;
    nibbles[1] = odd & 0x33333333u;
    nibbles[2] = even >> 2 & 0x33333333u;
    nibbles[3] = odd >> 2 & 0x33333333u;
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      nibbles[j] = (Shift(codes.plane[0], -j) & 0x11111111u) |
                   (Shift(codes.plane[1], 1 - j) & 0x22222222u) |
                   (Shift(codes.plane[2], 2 - j) & 0x44444444u);
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t bytes = SelectBytes(table.x, table.y, nibbles[j] >> (16 * half));
      words[4 * j + 2 * half] = SelectBytes(bytes, 0, 0x1404);
      words[4 * j + 2 * half + 1] = SelectBytes(bytes, 0, 0x3424);
    }
  }
}

template <int kBits>
__device__ inline void ExpandLongCodes(const Codes<kBits>& codes, int unit_exponent,
                                       uint32_t (&words)[16]) {
  // As bits of a binary16 an integer below 2^11 is itself times 2^-24.
  constexpr int kToOne = 24 - kSketchShift;
  const __half2 to_one = __float2half2_rn(static_cast<float>(1 << kToOne));
  const __half2 unit = __float2half2_rn(static_cast<float>(1 << unit_exponent));
  const uint32_t lowest = LowestLevels(codes);
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    uint32_t pair = Shift(codes.plane[kBits - 1], 15 - i) & 0x80008000u;
    pair |= Shift(lowest, kBits - 1 - i) & (0x00010001u << (kBits - 1));
#pragma unroll
    for (int bit = 0; bit < kBits - 1; ++bit) {
      pair |= Shift(codes.plane[bit], bit - i) & (0x00010001u << bit);
    }
    const __half2 levels = *reinterpret_cast<const __half2*>(&pair);
    const __half2 weights = __hmul2(__hmul2(levels, to_one), unit);
    words[i] = *reinterpret_cast<const uint32_t*>(&weights);
  }
}

// A column's weights of 32 rows from `words`, those of its class and row block. `buckets` are the
// column's in each hash row.
template <int kBits>
__device__ inline void DecodeColumn(const uint32_t* words, const SketchPart& part,
                                    const uint32_t (&buckets)[kMaxSketchHashRows],
                                    uint32_t (&weights)[16]) {
  Codes<kBits> best = LoadCodes<kBits>(words + buckets[0] * kBits);
#pragma unroll
  for (int hash_row = 1; hash_row < kMaxSketchHashRows; ++hash_row) {
    if (hash_row >= part.hash_rows) break;
    words += part.words_per_hash_row;
    TakeLarger(LoadCodes<kBits>(words + buckets[hash_row] * kBits), best);
  }
  if constexpr (kBits <= 3) {
    ExpandShortCodes(best, ShortCodeTable<kBits>(part.unit_exponent), weights);
  } else {
    ExpandLongCodes(best, part.unit_exponent, weights);
  }
}

// Decodes a lane's column of kRowBlocks row blocks into their tiles from `tile` on. `words` are the
// first row block's.
template <int kBits, int kRowBlocks>
__device__ inline void DecodeColumnTiles(const uint32_t* words, int words_per_block,
                                         const SketchPart& part,
                                         const uint32_t (&buckets)[kMaxSketchHashRows],
                                         bool is_column, int column, uint8_t* tile) {
  words += part.first_word;
#pragma unroll
  for (int block = 0; block < kRowBlocks; ++block) {
    uint32_t weights[16] = {};
    if (is_column) {
      DecodeColumn<kBits>(words + block * words_per_block, part, buckets, weights);
    }
#pragma unroll
    for (int piece = 0; piece < 4; ++piece) {
      *reinterpret_cast<uint4*>(tile + block * kWeightBlockBytes +
                                WeightPieceOffset(column, piece)) =
          make_uint4(weights[4 * piece], weights[4 * piece + 1], weights[4 * piece + 2],
                     weights[4 * piece + 3]);
    }
  }
}

// A lane's column of a step: where its buckets are.
struct ColumnBuckets {
  uint32_t buckets[kMaxSketchHashRows];
};

// The buckets of column `column` of the steps, which is in `part`.
__device__ inline ColumnBuckets LoadColumnBuckets(const uint16_t* entries, const SketchPart& part,
                                                  int step, int column) {
  ColumnBuckets result;
  const int32_t stride = part.entries_per_hash_row();
  const uint16_t* entry =
      entries + part.first_entry + (step - part.first_step) * kStepColumns + column;
#pragma unroll
  for (int hash_row = 0; hash_row < kMaxSketchHashRows; ++hash_row) {
    result.buckets[hash_row] = hash_row < part.hash_rows ? __ldg(entry + hash_row * stride) : 0u;
  }
  return result;
}

// Decodes this lane's column of a step, `column` 0 to 63, for kRowBlocks row blocks.
template <int kRowBlocks>
__device__ inline void DecodeStepColumn(const uint32_t* words, int words_per_block,
                                        const SketchPart& part, const ColumnBuckets& column_buckets,
                                        int step, int column, uint8_t* tile) {
  const bool is_column = (step - part.first_step) * kStepColumns + column < part.num_columns;
  const auto decode = [&]<int kBits>() {
    DecodeColumnTiles<kBits, kRowBlocks>(words, words_per_block, part, column_buckets.buckets,
                                         is_column, column, tile);
  };
  switch (part.bits) {
    case 2:
      return decode.template operator()<2>();
    case 3:
      return decode.template operator()<3>();
    case 4:
      return decode.template operator()<4>();
    case 5:
      return decode.template operator()<5>();
    case 6:
      return decode.template operator()<6>();
    case 7:
      return decode.template operator()<7>();
    default:
      return decode.template operator()<8>();
  }
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_SKETCH_DECODE_CUH_
