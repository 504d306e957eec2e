// What the kernels of attention over a cache of bytes share. A query's result is the same to the
// bit in each of them: sums of products are exact integers, and the order of every other sum is
// fixed here and in attention_merge.cuh.
//
// Of a piece of 64 keys, for eight queries q (a warp's rows; M the largest score of a query):
//
//   score[j]   = scale of q * scale of key j * (q . key j)    q as integers of 16 bits, two planes
//   p[j]       = 2^(score[j] - M), in units of log2
//   w[j]       = p[j] * scale of value j, as integers of 16 bits of the largest, two planes
//   values[d]  = unit * sum over j of w[j] * value j[d]
//
// One instruction has the high planes of eight queries in its upper rows and the low planes in its
// lower ones, so that a lane has both of the same query and keys. Bytes are never expanded: keys
// and values are operands of mma.m16n8k32 as they lie.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_INT8_ATTENTION_CUH_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_INT8_ATTENTION_CUH_

#include <cmath>
#include <cstdint>

#include "engine/backends/cuda/attention_tile.cuh"
#include "engine/backends/cuda/rotation.cuh"
#include "engine/codecs/cuda/byte_product.cuh"
#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/ptx/mma.cuh"

namespace ultrasketch::cuda {

// Sixteen tokens of a key head in the cache, kDims being the head's dimensions filled up to whole
// instructions:
//
//   keys     [16 keys][kDims]   with kDims a multiple of 128, odd keys swap halves of 128 bytes, so
//                               that lanes that read two keys meet in no bank
//   values   [kDims][16 keys]
//   scales   [16 keys], [16 values] bfloat16
template <int kDims>
struct Int8Run {
  static constexpr int kKeyBytes = kRunKeys * kDims;
  static constexpr int kValues = kKeyBytes;
  static constexpr int kKeyScales = 2 * kKeyBytes;
  static constexpr int kValueScales = kKeyScales + kRunKeys * 2;
  static constexpr int kBytes = kValueScales + kRunKeys * 2;
  static_assert(kBytes == kRunKeys * Int8TokenBytes(kDims));
  // From one run to the next in shared memory: 32 bytes more than whole rows of banks, so that
  // lanes that read the same place of four runs meet in none.
  static constexpr int kStride = (kBytes + 95) / 128 * 128 + 32;
  static_assert(kStride >= kBytes && kStride % 128 == 32);

  static __device__ int KeyOffset(int key, int dim) {
    const int swap = kDims % 128 == 0 ? key % 2 * 64 : 0;
    return key * kDims + (dim ^ swap);
  }
  static __device__ int ValueOffset(int key, int dim) { return kValues + dim * kRunKeys + key; }
};

// Where the run of `position` lies in the cache.
template <int kDims>
__device__ inline int64_t Int8RunBase(const AttentionGeometry& geometry, int64_t block, int kv_head,
                                      int slot) {
  return ((block * geometry.num_kv_heads + kv_head) * (geometry.block_size / kRunKeys) +
          slot / kRunKeys) *
         Int8Run<kDims>::kBytes;
}

// A query, key or value of a head in a warp: each lane has pairs of dimensions i and i + half.
template <int kDims>
struct HeadRow {
  static constexpr int kPairs = (kDims / 2 + 31) / 32;
  float low[kPairs];
  float high[kPairs];

  // Zeros past the head's dimensions.
  __device__ void Load(const float* row, int half) {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int i = PairOf(p);
      low[p] = i < half ? row[i] : 0.0f;
      high[p] = i < half ? row[half + i] : 0.0f;
    }
  }
  __device__ void Rotate(const Rotation (&rotations)[kPairs]) {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const float2 rotated = rotations[p].Apply(low[p], high[p]);
      low[p] = rotated.x;
      high[p] = rotated.y;
    }
  }
  // Calls `put(dim, value)` for this lane's dimensions.
  template <typename Put>
  __device__ void ForEach(int half, const Put& put) const {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int i = PairOf(p);
      if (i < half) {
        put(i, low[p]);
        put(half + i, high[p]);
      }
    }
  }
  // The bits of the row's largest magnitude; at least infinity's where an entry is not finite.
  __device__ uint32_t Largest() const {
    uint32_t largest = 0;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      largest = max(largest, __float_as_uint(low[p]) & 0x7fffffffu);
      largest = max(largest, __float_as_uint(high[p]) & 0x7fffffffu);
    }
    return __reduce_max_sync(0xffffffffu, largest);
  }

  static __device__ int PairOf(int p) { return static_cast<int>(threadIdx.x % 32) + 32 * p; }
};

inline constexpr uint32_t kInfinityBits = 0x7f800000u;
inline constexpr float kLeastMagnitude = 0x1p-100f;  // below it a row is zeros

// What engine/kv/int8_row.h does.
struct Int8Scale {
  uint16_t bfloat16;
  float inverse;
  bool is_finite;

  __device__ explicit Int8Scale(uint32_t largest) {
    is_finite = largest < kInfinityBits;
    const bool is_zero = __uint_as_float(largest) < kLeastMagnitude;
    const uint32_t scale =
        (__float_as_uint(__fdiv_rn(__uint_as_float(largest), 127.0f)) + 0xffffu) >> 16;
    bfloat16 = static_cast<uint16_t>(!is_finite ? 0x7fc0u : is_zero ? 0u : scale);
    inverse = is_zero ? 0.0f : __frcp_rn(__uint_as_float(scale << 16));
  }
  __device__ int8_t Round(float value) const {
    const int rounded = RoundToInteger(__fmul_rn(value, inverse));
    return static_cast<int8_t>(is_finite ? max(-127, min(127, rounded)) : 0);
  }
};

// Eight queries as integers of 16 bits in shared memory.
template <int kDims>
struct Int8Queries {
  // Two rows that lanes read 64 bytes of at a time are in different banks.
  static constexpr int kStride = kDims % 128 == 0 ? kDims + 64 : kDims;
  static constexpr int kPlaneBytes = kInt8Rows * kStride;
  static constexpr int kBytes = 2 * kPlaneBytes + kInt8Rows * 4;
  static constexpr float kMost = 32639.0f;  // 127 * 256 + 127

  uint8_t* memory;

  __device__ float& Scale(int row) const {
    return reinterpret_cast<float*>(memory + 2 * kPlaneBytes)[row];
  }
  // Zeros, by threads `thread` of num_threads.
  __device__ void Clear(int thread, int num_threads) const {
#pragma unroll 1
    for (int i = thread; i < kBytes / 4; i += num_threads) {
      reinterpret_cast<uint32_t*>(memory)[i] = 0;
    }
  }
  // By a warp.
  __device__ void Put(int row, const HeadRow<kDims>& query, int head_dim) const {
    const uint32_t largest = query.Largest();
    const float bound = fmaxf(__uint_as_float(largest), kLeastMagnitude);
    const float factor = __fdiv_rn(kMost, bound);
    query.ForEach(head_dim / 2, [&](int dim, float value) {
      const int rounded = RoundToInteger(__fmul_rn(value, factor));
      const int high = (rounded + 128) >> 8;
      uint8_t* const place = memory + row * kStride + dim;
      place[0] = static_cast<uint8_t>(high);
      place[kPlaneBytes] = static_cast<uint8_t>(rounded);
    });
    if (threadIdx.x % 32 == 0) {
      Scale(row) = largest < kInfinityBits
                       ? __fmul_rn(bound, __fdiv_rn(QueryScale(head_dim), kMost))
                       : __uint_as_float(0x7fc00000u);
    }
  }
};

// sums += a * b, `a` unsigned: see MmaS8.
__device__ inline void MultiplyUnsignedBytes(const uint32_t (&a)[4], uint2 b, int (&sums)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

// NaN if either is.
__device__ inline float MaxOrNaN(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

// Sixteen bfloat16 to floats.
struct RunScales {
  float values[kRunKeys];

  __device__ explicit RunScales(const uint8_t* scales) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 packed = reinterpret_cast<const uint4*>(scales)[half];
      const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        values[half * 8 + 2 * i] = __uint_as_float(words[i] << 16);
        values[half * 8 + 2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
      }
    }
  }
};

__device__ inline float JoinPlanes(int high, int low) { return __int2float_rn(256 * high + low); }

// One warp: a piece whose runs are in shared memory from `runs` on, Int8Run::kStride apart. Lane l
// is of query l / 4, which sees the piece's first `num_keys` keys; those past them may be anything.
// Calls `take(tile, values)` with the weighted values of dimensions 8 * tile + 2 * (l % 4) and the
// next, for every tile of eight, and returns the query's {maximum, sum}.
template <int kDims, typename Take>
__device__ inline float2 AttendInt8Piece(const Int8Queries<kDims>& queries, const uint8_t* runs,
                                         int num_keys, const Take& take) {
  using Run = Int8Run<kDims>;
  using Queries = Int8Queries<kDims>;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int row = lane / 4;
  const int quad = lane % 4;

  // Columns are keys as in KeyOfColumn: a lane's are those of run `quad`.
  int sums[kKeyTiles][4] = {};
  {
    const uint8_t* const query = queries.memory + row * Queries::kStride;
    const uint8_t* const keys = runs + row / 2 * Run::kStride + row % 2 * kDims;
    const int swap = kDims % 128 == 0 ? row % 2 * 64 : 0;
#pragma unroll
    for (int part = 0; part < kDims / 64; ++part) {
      const int dim = part * 64 + quad * 16;
      const uint4 high = *reinterpret_cast<const uint4*>(query + dim);
      const uint4 low = *reinterpret_cast<const uint4*>(query + Queries::kPlaneBytes + dim);
      const uint32_t a0[4] = {high.x, low.x, high.y, low.y};
      const uint32_t a1[4] = {high.z, low.z, high.w, low.w};
      const uint8_t* const of_part = keys + (dim ^ swap);
#pragma unroll
      for (int j = 0; j < kKeyTiles; ++j) {
        const uint4 key = *reinterpret_cast<const uint4*>(of_part + j * 2 * kDims);
        MmaS8(a0, {key.x, key.y}, sums[j]);
        MmaS8(a1, {key.z, key.w}, sums[j]);
      }
    }
    if constexpr (kDims % 64 != 0) {
      const int dim = kDims / 64 * 64 + quad * 8;
      const uint2 high = *reinterpret_cast<const uint2*>(query + dim);
      const uint2 low = *reinterpret_cast<const uint2*>(query + Queries::kPlaneBytes + dim);
      const uint32_t a[4] = {high.x, low.x, high.y, low.y};
#pragma unroll
      for (int j = 0; j < kKeyTiles; ++j) {
        MmaS8(a, *reinterpret_cast<const uint2*>(keys + dim + j * 2 * kDims), sums[j]);
      }
    }
  }

  const uint8_t* const run = runs + quad * Run::kStride;
  const float scale = queries.Scale(row);
  float scores[kRunKeys];
  float largest = -INFINITY;
  {
    const RunScales scales(run + Run::kKeyScales);
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int key = 2 * j + e;
        scores[key] = __fmul_rn(JoinPlanes(sums[j][e], sums[j][2 + e]), scales.values[key]);
      }
    }
    if (__any_sync(0xffffffffu, num_keys < kKvTileKeys)) {
#pragma unroll
      for (int key = 0; key < kRunKeys; ++key) {
        if (quad * kRunKeys + key >= num_keys) scores[key] = -INFINITY;
      }
    }
#pragma unroll
    for (int key = 0; key < kRunKeys; ++key) largest = fmaxf(largest, scores[key]);
  }
  largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
  largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
  // Keys that are not seen have weights of zero, with or without one that is.
  const float maximum = largest == -INFINITY ? -INFINITY : __fmul_rn(largest, scale);
  const float base = largest == -INFINITY ? 0.0f : -maximum;

  float weights[kRunKeys];
  float sum = 0.0f;
  float most = 0.0f;
  {
    const RunScales scales(run + Run::kValueScales);
#pragma unroll
    for (int key = 0; key < kRunKeys; ++key) {
      const float p = Exp2(__fmaf_rn(scores[key], scale, base));
      sum = __fadd_rn(sum, p);
      // The scale of a value that is not seen may be NaN.
      weights[key] = scores[key] == -INFINITY ? 0.0f : __fmul_rn(p, scales.values[key]);
      most = MaxOrNaN(most, weights[key]);
    }
  }
  sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 1));
  sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 2));
  most = MaxOrNaN(most, __shfl_xor_sync(0xffffffffu, most, 1));
  most = MaxOrNaN(most, __shfl_xor_sync(0xffffffffu, most, 2));

  constexpr float kMostWeight = 65535.0f;
  const float factor = most > 0.0f ? __fmul_rn(kMostWeight, __frcp_rn(most)) : 0.0f;
  const float unit = __fmul_rn(most, 1.0f / kMostWeight);
  uint32_t high[4];
  uint32_t low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // The last bit of numbers near 2^23 is 1: the lower two bytes are the rounded weight.
    uint32_t bits[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      bits[k] = __float_as_uint(__fmaf_rn(weights[4 * i + k], factor, 0x1p23f));
    }
    const uint32_t first = __byte_perm(bits[0], bits[1], 0x5410);
    const uint32_t second = __byte_perm(bits[2], bits[3], 0x5410);
    low[i] = __byte_perm(first, second, 0x6420);
    high[i] = __byte_perm(first, second, 0x7531);
  }
  const uint32_t a0[4] = {high[0], low[0], high[1], low[1]};
  const uint32_t a1[4] = {high[2], low[2], high[3], low[3]};
  const uint8_t* const values = run + Run::kValues + row * kRunKeys;
#pragma unroll
  for (int tile = 0; tile < kDims / 8; ++tile) {
    const uint4 value = *reinterpret_cast<const uint4*>(values + tile * 8 * kRunKeys);
    int products[4] = {};
    MultiplyUnsignedBytes(a0, {value.x, value.y}, products);
    MultiplyUnsignedBytes(a1, {value.z, value.w}, products);
    take(tile, float2{__fmul_rn(JoinPlanes(products[0], products[2]), unit),
                      __fmul_rn(JoinPlanes(products[1], products[3]), unit)});
  }
  return {maximum, sum};
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_INT8_ATTENTION_CUH_
