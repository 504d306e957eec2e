// Decoding of an AbsMaxMin sketch into tiles of fp16 weights in shared memory.
//
// A lane takes a column and 32 rows. It reads the column's bucket of each hash row, b words of 32
// one-bit rows, keeps of them the larger magnitude bit by bit, and expands the 32 codes that are
// left to fp16. At two bits and three hash rows, 32 weights are 3 loads, 8 logic operations to
// query, 22 and as many multiply-adds as pairs to expand, and 4 stores: less than one operation a
// weight, where an SM does 64 a cycle. Shared memory is the bound: two bytes stored and read again
// for each weight, and three quarters of a byte of buckets, about three lanes to a bank.
//
// A tile of weights, for each row block in turn (4096 bytes):
//
//   [64 columns][32 rows] fp16, its 16-byte pieces swizzled: piece ^ (column / 2 % 4)
//
// so that neither the lanes that store neighbouring columns nor those that read with ldmatrix meet
// in a bank; it is also the 64-byte swizzle of wgmma's operands.
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_DECODE_CUH_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_DECODE_CUH_

#include <cuda_fp16.h>

#include <cstdint>

#include "engine/codecs/absmaxmin/cuda/absmaxmin_matrix.h"
#include "engine/codecs/cuda/ptx/mbarrier.cuh"

namespace ultrasketch::cuda {

inline constexpr int kWeightBlockBytes = kKTileColumns * kBucketBlockRows * 2;
inline constexpr int kHalfKTile = 32;  // columns, one a lane

// Two-bit fields that an fp16 number of exponent 10 holds.
inline constexpr int kPairFields = 5;

// Offset in a row block's tile of eight rows of a column.
US_HOST_DEVICE constexpr int WeightPieceOffset(int column, int piece) {
  return column * (kBucketBlockRows * 2) + (piece ^ (column >> 1 & 3)) * 16;
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

// The rows of the lowest code, whose magnitude has one bit more than the bit planes: a sign without
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
  if constexpr (kBits == 2) {
    // Magnitudes 0, 1 and 2: unless `best` is 2, any 2, and 1 where it is 0.
    const uint32_t one_or_two =
        (other.plane[0] & ~best.plane[0]) | (other.plane[1] & ~other.plane[0]);
    const uint32_t larger = one_or_two & ~(best.plane[1] & ~best.plane[0]);
    best.plane[0] = (larger & other.plane[0]) | (~larger & best.plane[0]);
    best.plane[1] = (larger & other.plane[1]) | (~larger & best.plane[1]);
    return;
  }
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

// A class, and what its two-bit codes are expanded with.
struct PartExpansion {
  BucketPart part;
  __half2 scale[kPairFields];
  __half2 offset[kPairFields];

  // After `part` is set.
  __device__ void SetFactors() {
    __half2 unit = __float2half2_rn(__int_as_float((127 + part.unit_exponent - kCodeShift) << 23));
    float zero = 1024.0f + 2.0f;
#pragma unroll
    for (int field = 0; field < kPairFields; ++field) {
      scale[field] = unit;
      offset[field] = __hneg2(__hmul2(__float2half2_rn(zero), unit));
      zero = 1024.0f + static_cast<float>(8 << (2 * field));
      unit = __hmul2(unit, __float2half2_rn(0.25f));
    }
  }
};

// (value & mask) | set, and (mask & chosen) | (~mask & ~other): one instruction each, where two
// constants would otherwise take two.
__device__ inline uint32_t AndOr(uint32_t value, uint32_t mask, uint32_t set) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(value), "r"(mask), "r"(set));
  return result;
}
__device__ inline uint32_t SelectOrInverse(uint32_t mask, uint32_t chosen, uint32_t other) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xc5;" : "=r"(result) : "r"(mask), "r"(chosen), "r"(other));
  return result;
}

// 32 rows of a column as fp16: words[b] are rows 2 * b and the next, bits b and b + 16.
//
// With its sign inverted a two-bit code is its value plus 2. As lowest bits of an fp16 whose
// exponent is that of 1024 it stands for 1024 + code, two bits further up for 1024 + 4 * code, and
// so on: a multiply-add, exact, makes the weight of any of the kPairFields lowest.
__device__ inline void ExpandPairs(const Codes<2>& codes, const PartExpansion& part,
                                   uint32_t (&words)[16]) {
  constexpr uint32_t kEvenBits = 0x55555555u;
  const uint32_t fields[2] = {SelectOrInverse(kEvenBits, codes.plane[0], codes.plane[1] << 1),
                              SelectOrInverse(kEvenBits, codes.plane[0] >> 1, codes.plane[1])};
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    const uint32_t upper = fields[odd] >> (2 * kPairFields);
#pragma unroll
    for (int field = 0; field < 8; ++field) {
      const int place = field % kPairFields;
      const uint32_t bits = field < kPairFields ? fields[odd] : upper;
      const uint32_t pair = AndOr(bits, 0x00030003u << (2 * place), 0x64006400u);
      const __half2 weights =
          __hfma2(*reinterpret_cast<const __half2*>(&pair), part.scale[place], part.offset[place]);
      words[2 * field + odd] = *reinterpret_cast<const uint32_t*>(&weights);
    }
  }
}

// The upper bytes of code * 2^(unit_exponent - kCodeShift), whose lower bytes are zero, of the
// three-bit codes: byte c of the pair of words is code c's.
__device__ inline uint2 TripleTable(int unit_exponent) {
  const auto one = static_cast<uint32_t>(unit_exponent + 15 - kCodeShift) << 2;
  // 0, 1, 2, 3, -4, -1, -2, -3
  const uint32_t magnitudes = one << 8 | (one + 4) << 16 | (one + 6) << 24;
  return {magnitudes, 0x80808080u | magnitudes | (one + 8)};
}

// words[4 * j + i] are rows 8 * j + 2 * i and the next.
__device__ inline void ExpandTriples(const Codes<3>& codes, uint2 table, uint32_t (&words)[16]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const uint32_t nibbles = (Shift(codes.plane[0], -j) & 0x11111111u) |
                             (Shift(codes.plane[1], 1 - j) & 0x22222222u) |
                             (Shift(codes.plane[2], 2 - j) & 0x44444444u);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t bytes = SelectBytes(table.x, table.y, nibbles >> (16 * half));
      words[4 * j + 2 * half] = SelectBytes(bytes, 0, 0x1404);
      words[4 * j + 2 * half + 1] = SelectBytes(bytes, 0, 0x3424);
    }
  }
}

template <int kBits>
__device__ inline void ExpandLongCodes(const Codes<kBits>& codes, int unit_exponent,
                                       uint32_t (&words)[16]) {
  // As bits of an fp16 an integer below 2^11 is itself times 2^-24.
  constexpr int kToOne = 24 - kCodeShift;
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

// A lane's column of a K tile: its buckets in up to eight hash rows, 16 bits each.
struct ColumnBuckets {
  uint2 words[2];

  __device__ uint32_t operator[](int hash_row) const {
    const uint2 four = words[hash_row / 4];
    const uint32_t two = hash_row % 4 / 2 == 0 ? four.x : four.y;
    return hash_row % 2 == 0 ? two & 0xffffu : two >> 16;
  }
};

// A lane's columns to come, on their way from device memory to a ring in shared memory. Each lane
// reads what it asked for itself. Asynchronous copies of the thread besides these must be waited
// for before.
class ColumnQueue {
 public:
  static constexpr int kDepth = 4;

  static US_HOST_DEVICE int64_t SharedBytes(int num_warps, int entry_words) {
    return int64_t{num_warps} * 32 * kDepth * entry_words * 8;
  }

  // `ring` is the shared memory of all warps, of which this is warp `warp`. The lane's columns are
  // `column` of K tiles `first_k_tile`, `first_k_tile` + `stride` and so on.
  __device__ ColumnQueue(const BucketTables& tables, int num_k_tiles, uint8_t* ring, int warp,
                         int lane, int column, int first_k_tile, int stride)
      : entry_words_(tables.entry_words),
        slot_(SharedAddress(ring) +
              static_cast<uint32_t>((warp * kDepth * 32 + lane) * tables.entry_words * 8)),
        source_(reinterpret_cast<const uint8_t*>(tables.entries) +
                (int64_t{first_k_tile} * kKTileColumns + column) * tables.entry_words * 8),
        source_stride_(stride * kKTileColumns * tables.entry_words * 8),
        num_left_((num_k_tiles - first_k_tile + stride - 1) / stride) {
    for (int i = 0; i < kDepth; ++i) AskForNext();
  }

  // The next column. When it is decoded, and any fence that follows is passed, AskForNext puts
  // another into its place: a fence waits for all columns that are asked for, which by then have
  // had the time of a K tile to come.
  __device__ ColumnBuckets Pop() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kDepth - 1) : "memory");
    // It lies where the next that is asked for will go.
    const uint32_t slot = slot_ + asked_ * slot_stride();
    ColumnBuckets result = {};
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                 : "=r"(result.words[0].x), "=r"(result.words[0].y)
                 : "r"(slot)
                 : "memory");
    if (entry_words_ > 1) {
      asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                   : "=r"(result.words[1].x), "=r"(result.words[1].y)
                   : "r"(slot + 8)
                   : "memory");
    }
    return result;
  }

  // A group of copies each time, an empty one when there is no column left.
  __device__ void AskForNext() {
    if (--num_left_ >= 0) {
      const uint32_t slot = slot_ + asked_ * slot_stride();
      if (entry_words_ == 1) {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(slot), "l"(source_)
                     : "memory");
      } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(slot), "l"(source_)
                     : "memory");
      }
      source_ += source_stride_;
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    asked_ = (asked_ + 1) % kDepth;
  }

 private:
  __device__ uint32_t slot_stride() const { return static_cast<uint32_t>(32 * entry_words_ * 8); }

  int entry_words_;
  uint32_t slot_;
  const uint8_t* source_;
  int source_stride_;
  int num_left_;
  uint32_t asked_ = 0;
};

// Decodes a lane's column of kRowBlocks row blocks into their tiles from `tile` on. `words` are the
// first row block's. kHashRows 0: as many as the class has.
template <int kBits, int kHashRows, int kRowBlocks>
__device__ inline void DecodeColumnTiles(const uint32_t* words, int words_per_block,
                                         const PartExpansion& part, const ColumnBuckets& buckets,
                                         int column, uint8_t* tile) {
  constexpr int kMaxHashRows = kHashRows == 0 ? kMaxDeviceHashRows : kHashRows;
  words += part.part.first_word;
  const uint32_t* addresses[kMaxHashRows];
#pragma unroll
  for (int hash_row = 0; hash_row < kMaxHashRows; ++hash_row) {
    addresses[hash_row] =
        words + hash_row * part.part.words_per_hash_row + buckets[hash_row] * kBits;
  }
  uint8_t* pieces[4];
#pragma unroll
  for (int piece = 0; piece < 4; ++piece) pieces[piece] = tile + WeightPieceOffset(column, piece);
  // All loads before the stores, which they would have to stay behind.
  Codes<kBits> best[kRowBlocks];
#pragma unroll
  for (int block = 0; block < kRowBlocks; ++block) {
    if constexpr (kHashRows != 0) {
      Codes<kBits> codes[kHashRows];
#pragma unroll
      for (int hash_row = 0; hash_row < kHashRows; ++hash_row) {
        codes[hash_row] = LoadCodes<kBits>(addresses[hash_row] + block * words_per_block);
      }
      best[block] = codes[0];
#pragma unroll
      for (int hash_row = 1; hash_row < kHashRows; ++hash_row) {
        TakeLarger(codes[hash_row], best[block]);
      }
    } else {
      best[block] = LoadCodes<kBits>(addresses[0] + block * words_per_block);
#pragma unroll
      for (int hash_row = 1; hash_row < kMaxHashRows; ++hash_row) {
        if (hash_row >= part.part.hash_rows) break;
        TakeLarger(LoadCodes<kBits>(addresses[hash_row] + block * words_per_block), best[block]);
      }
    }
  }
#pragma unroll
  for (int block = 0; block < kRowBlocks; ++block) {
    uint32_t weights[16];
    if constexpr (kBits == 2) {
      ExpandPairs(best[block], part, weights);
    } else if constexpr (kBits == 3) {
      ExpandTriples(best[block], TripleTable(part.part.unit_exponent), weights);
    } else {
      ExpandLongCodes(best[block], part.part.unit_exponent, weights);
    }
#pragma unroll
    for (int piece = 0; piece < 4; ++piece) {
      *reinterpret_cast<uint4*>(pieces[piece] + block * kWeightBlockBytes) =
          make_uint4(weights[4 * piece], weights[4 * piece + 1], weights[4 * piece + 2],
                     weights[4 * piece + 3]);
    }
  }
}

// Calls `body` with the bits and hash rows of a class as template arguments; hash rows of 0: as
// many as the class has.
template <typename Body>
__device__ inline void WithCodesOf(const BucketPart& part, const Body& body) {
  switch (part.bits) {
    case 2:
      switch (part.hash_rows) {
        case 1:
          return body.template operator()<2, 1>();
        case 2:
          return body.template operator()<2, 2>();
        case 3:
          return body.template operator()<2, 3>();
        case 4:
          return body.template operator()<2, 4>();
        default:
          return body.template operator()<2, 0>();
      }
    case 3:
      return body.template operator()<3, 0>();
    case 4:
      return body.template operator()<4, 0>();
    case 5:
      return body.template operator()<5, 0>();
    case 6:
      return body.template operator()<6, 0>();
    case 7:
      return body.template operator()<7, 0>();
    default:
      return body.template operator()<8, 0>();
  }
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_DECODE_CUH_
