// Weights of group-quantized integers in registers, as operands of tensor cores, and how a group's
// sum is added: what the kernels of grouped_product.cu and grouped_product_hopper.cu share.
#ifndef ULTRASKETCH_ENGINE_CODECS_GROUPED_CUDA_GROUPED_WEIGHTS_CUH_
#define ULTRASKETCH_ENGINE_CODECS_GROUPED_CUDA_GROUPED_WEIGHTS_CUH_

#include <cuda_fp16.h>

#include <cstdint>

#include "engine/codecs/grouped/cuda/grouped_product.h"

namespace ultrasketch::cuda {

inline constexpr int kGroupInstructions = 2;  // of a K tile, each of 32 columns

__device__ inline float GroupScale(uint32_t bits, bool is_half) {
  if (!is_half) return __uint_as_float(bits << 16);
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

// What a lane holds of a K tile of an M tile, 16 neighbouring columns. `Load` is from global or
// shared memory, `Expand` gives the operand of an instruction, whose inputs are to be 8 of these
// columns for each lane of a quad. `LoadOperands` is from shared memory and gives the operands of
// both instructions with their 32 columns in sequence, as inputs have them in shared memory.
struct Int8Weights {
  static constexpr int kIntegerBytes = kInt8IntegerBytes;
  static constexpr float kUnit = 1.0f;  // what a byte of 1 stands for

  uint4 rows[2];
  __device__ void Load(const uint8_t* k_tile, int lane) {
    const auto* units = reinterpret_cast<const uint4*>(k_tile) + GroupUnit(lane / 4, lane % 4);
    rows[0] = units[0];
    rows[1] = units[32];
  }
  __device__ void Expand(int instruction, uint32_t (&a)[4]) const {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      a[row] = instruction == 0 ? rows[row].x : rows[row].z;
      a[row + 2] = instruction == 0 ? rows[row].y : rows[row].w;
    }
  }

  static __device__ void LoadOperands(const uint8_t* k_tile, int lane,
                                      uint32_t (&a)[kGroupInstructions][4]) {
    // A register is a matrix of 8 rows by 16 columns, of which lanes 8 m + r have the addresses.
    const int half = lane / 8 % 2;
    const auto units = static_cast<uint32_t>(__cvta_generic_to_shared(k_tile + half * 512));
#pragma unroll
    for (int i = 0; i < kGroupInstructions; ++i) {
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(a[i][0]), "=r"(a[i][1]), "=r"(a[i][2]), "=r"(a[i][3])
                   : "r"(units + GroupUnit(lane % 8, 2 * i + lane / 16) * 16)
                   : "memory");
    }
  }
};

struct Int4Weights {
  static constexpr int kIntegerBytes = kInt4IntegerBytes;
  static constexpr float kUnit = 0x1p-4f;
  static constexpr uint32_t kUpperHalves = 0xf0f0f0f0u;

  uint4 words;
  __device__ void Load(const uint8_t* k_tile, int lane) {
    words = reinterpret_cast<const uint4*>(k_tile)[GroupUnit(lane / 4, lane % 4)];
  }
  __device__ void Expand(int instruction, uint32_t (&a)[4]) const {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const uint32_t low = row == 0 ? words.x : words.z;
      const uint32_t high = row == 0 ? words.y : words.w;
      const uint32_t word = instruction == 0 ? low : high;
      a[row] = word & kUpperHalves;
      a[row + 2] = word << 4 & kUpperHalves;
    }
  }
  static __device__ void LoadOperands(const uint8_t* k_tile, int lane,
                                      uint32_t (&a)[kGroupInstructions][4]) {
    const int quad = lane % 4;
    const uint8_t* const words_of_quad = k_tile + quad / 2 * 4;
#pragma unroll
    for (int i = 0; i < kGroupInstructions; ++i) {
#pragma unroll
      for (int reg = 0; reg < 4; ++reg) {
        const uint32_t word = *reinterpret_cast<const uint32_t*>(
            words_of_quad + GroupUnit(lane / 4, 2 * i + reg / 2) * 16 + reg % 2 * 8);
        a[i][reg] = word << (quad % 2 * 4) & kUpperHalves;
      }
    }
  }
};

// The scales of the lane's two rows of a K tile.
template <typename Weights>
__device__ inline uint32_t LoadGroupScales(const uint8_t* k_tile, int lane) {
  return *reinterpret_cast<const uint32_t*>(k_tile + Weights::kIntegerBytes + lane / 4 * 4);
}
template <typename Weights>
__device__ inline float2 GroupScales(uint32_t scales, bool are_half) {
  return {GroupScale(scales & 0xffffu, are_half) * Weights::kUnit,
          GroupScale(scales >> 16, are_half) * Weights::kUnit};
}

// total + the sum of a group's high bytes and low bytes times the scale of its row. The sum is no
// more than 64 * 128 * 2^15.
__device__ inline float AddGroupSum(float total, int high, int low, float scale) {
  return __fmaf_rn(static_cast<float>(high * 256 + low), scale, total);
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_GROUPED_CUDA_GROUPED_WEIGHTS_CUH_
