// Bit-serial (bit-sliced) inputs, for instructions that count the bits that two operands have in
// common: mma.m16n8k256 takes the bits of an M tile's K tile as they lie (bit_layout.h), 256
// buckets at once, and eight bits of a token's 16-bit integers. Neither needs expanding:
//
//   sum of bit * input = sum over p of 2^p * popcount(row AND bits p of the inputs)
//
// where the count of bit 15, the sign, is subtracted. An input's bits p are words in the
// order in which a warp writes and reads them:
//
//   [bit K tile][p / 8][half][p % 8][quarter]
//
// Quarter q of a half has its runs q and q + 4; the order of bits is that of the weights.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_SERIAL_CUH_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_SERIAL_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/codecs/cuda/input_transform.cuh"
#include "engine/codecs/fold/cuda/bit_layout.h"

namespace ultrasketch::cuda {

// A warp's quads of positions: half a bit K tile.
inline constexpr int kWarpPositions = 32 * kQuad;
static_assert(2 * kWarpPositions == kBitKTileColumns);

// What a lane does to its warp's quads of positions. Of the eight lanes that have a quarter, each
// gets two of the bits p for its 32 columns in exchange for all 16 of its four: a bit of the lane's
// number and one of p's trade places, three times.
class BitTranspose {
 public:
  static constexpr int kWordBytes = sizeof(uint32_t);
  // From a word of bits 0 to 7 to that of bits 8 to 15.
  static constexpr int kUpperBitsBytes = kBitKTileBytes / 2;

  __device__ BitTranspose() {
    const auto lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int i = 0; i < kTrades; ++i) {
      const bool is_upper = (lane & LaneBit(i)) != 0;
      kept_[i] = static_cast<int>(is_upper ? ~LowerBits(i) : LowerBits(i));
      rotation_[i] = is_upper ? 32 - (1 << i) : 1 << i;
      Materialize(kept_[i]);
      Materialize(rotation_[i]);
    }
    const int plane = lane / 16 * 4 + lane % 4;
    const int quarter = lane / 4 % 4;
    offset_ = (plane * 4 + quarter) * kWordBytes;
    Materialize(offset_);
  }

  // Where this lane's word of bits 0 to 7 goes, of the half K tile that `position` is in.
  __device__ int OffsetOf(int position) const {
    return position / kBitKTileColumns * kBitKTileBytes +
           position / kWarpPositions % 2 * kHalfBytes + offset_;
  }

  // By all lanes, with the integers of their quads: this lane's words.
  struct Words {
    uint32_t lower;
    uint32_t upper;
  };
  __device__ Words Trade(const uint32_t (&integers)[kQuad]) const {
    Words words = {BytesOf<0>(integers), BytesOf<1>(integers)};
#pragma unroll
    for (int i = 0; i < kTrades; ++i) {
      const uint32_t lower = __shfl_xor_sync(0xffffffffu, words.lower, LaneBit(i));
      const uint32_t upper = __shfl_xor_sync(0xffffffffu, words.upper, LaneBit(i));
      words = {Take(i, words.lower, lower), Take(i, words.upper, upper)};
    }
    return words;
  }

  // What this lane needs for MmaAndPopc of a K tile's bits 0 to 7, or of 8 to 15
  // kUpperBitsBytes on. `K tile` is the K tile's first byte, plus kWordBytes for each lane before.
  static __device__ uint2 Load(const uint8_t* k_tile) {
    return {*reinterpret_cast<const uint32_t*>(k_tile),
            *reinterpret_cast<const uint32_t*>(k_tile + kHalfBytes)};
  }

 private:
  static constexpr int kHalfBytes = 32 * kWordBytes;
  static constexpr int kTrades = 3;
  // Lanes of a quarter: four of its lower run, four of its upper one.
  static constexpr int LaneBit(int i) { return i == 2 ? 16 : 1 << i; }
  // The bits of bytes whose number has no bit i.
  static constexpr uint32_t LowerBits(int i) {
    return i == 0 ? 0x55555555u : i == 1 ? 0x33333333u : 0x0f0f0f0fu;
  }
  __device__ uint32_t Take(int i, uint32_t own, uint32_t others) const {
    const auto kept = static_cast<uint32_t>(kept_[i]);
    return (own & kept) | (__funnelshift_l(others, others, rotation_[i]) & ~kept);
  }

  int kept_[kTrades];
  int rotation_[kTrades];
  int offset_;
};

// From the columns of MmaAndPopc: a row's sum of bit * input as far as this lane has counted it,
// `low` of bits 0 to 7 and `high` of 8 to 15. Sums may wrap around.
__device__ inline uint32_t WeighCounts(int low0, int low1, int high0, int high1) {
  const unsigned quad_lane = threadIdx.x % 4;
  const int sign = quad_lane == 3 ? -2 : 2;  // bit 15 is its second high one
  const int sum = low0 + 2 * low1 + 256 * (high0 + sign * high1);
  return static_cast<uint32_t>(sum) << (2 * quad_lane);
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_SERIAL_CUH_
