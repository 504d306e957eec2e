// Sixteen floats at a time, in the compilers' vector extension: the same source becomes AVX-512,
// AVX2 or baseline code by the options of the file that includes it (see
// cmake/InstructionSets.cmake).
//
// For kernel sources only. Everything here has internal linkage, because object files of different
// instruction sets are linked together and must not share inline functions; for the same reason a
// kernel source includes nothing else that has any.
#ifndef ULTRASKETCH_ENGINE_BASE_VECTOR16_H_
#define ULTRASKETCH_ENGINE_BASE_VECTOR16_H_

#include <cstdint>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

// How vectors wider than a register are passed does not matter: nothing here is called from another
// object file.
#if defined(__clang__)
#pragma clang diagnostic ignored "-Wpsabi"
#endif

namespace ultrasketch {
namespace {

typedef float Float16 __attribute__((vector_size(64)));
typedef uint32_t Uint16 __attribute__((vector_size(64)));
typedef int32_t Int16 __attribute__((vector_size(64)));
typedef uint16_t Short16 __attribute__((vector_size(32)));

template <typename To, typename From>
inline To BitCast(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  __builtin_memcpy(&result, &value, sizeof(result));
  return result;
}

[[maybe_unused]] inline Float16 Load(const float* data) {
  Float16 value;
  __builtin_memcpy(&value, data, sizeof(value));
  return value;
}

[[maybe_unused]] inline void Store(Float16 value, float* data) {
  __builtin_memcpy(data, &value, sizeof(value));
}

// The first `count` < 16 floats, zeros after them.
[[maybe_unused]] inline Float16 LoadPartial(const float* data, int64_t count) {
  float buffer[16] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = data[i];
  return Load(buffer);
}

[[maybe_unused]] inline void StorePartial(Float16 value, int64_t count, float* data) {
  for (int64_t i = 0; i < count; ++i) data[i] = value[i];
}

[[maybe_unused]] inline Float16 Broadcast(float value) { return Float16{} + value; }

// Lane i of the result is lane i ^ distance.
#define US_SWAP_LANES(v, distance)                                                              \
  __builtin_shufflevector(v, v, 0 ^ (distance), 1 ^ (distance), 2 ^ (distance), 3 ^ (distance), \
                          4 ^ (distance), 5 ^ (distance), 6 ^ (distance), 7 ^ (distance),       \
                          8 ^ (distance), 9 ^ (distance), 10 ^ (distance), 11 ^ (distance),     \
                          12 ^ (distance), 13 ^ (distance), 14 ^ (distance), 15 ^ (distance))

// Lanes are added in one fixed order: a tree of halves.
[[maybe_unused]] inline float Sum(Float16 v) {
  v += US_SWAP_LANES(v, 8);
  v += US_SWAP_LANES(v, 4);
  v += US_SWAP_LANES(v, 2);
  v += US_SWAP_LANES(v, 1);
  return v[0];
}

[[maybe_unused]] inline Float16 Larger(Float16 a, Float16 b) { return a > b ? a : b; }

[[maybe_unused]] inline float Maximum(Float16 v) {
  v = Larger(v, US_SWAP_LANES(v, 8));
  v = Larger(v, US_SWAP_LANES(v, 4));
  v = Larger(v, US_SWAP_LANES(v, 2));
  return Larger(v, US_SWAP_LANES(v, 1))[0];
}

#undef US_SWAP_LANES

[[maybe_unused]] inline Uint16 Widen(Short16 v) {
#if defined(__AVX512F__)
  // gcc 12 takes eight instructions for what is one.
  return BitCast<Uint16>(_mm512_cvtepu16_epi32(BitCast<__m256i>(v)));
#else
  return __builtin_convertvector(v, Uint16);
#endif
}

// Stored elements to floats. F16 is exact for all finite values.
struct F32Elements {
  static constexpr int64_t kBytes = 4;
  static Float16 LoadAsFloat(const uint8_t* data) {
    Float16 value;
    __builtin_memcpy(&value, data, sizeof(value));
    return value;
  }
};

struct Bf16Elements {
  static constexpr int64_t kBytes = 2;
  static Float16 LoadAsFloat(const uint8_t* data) {
    Short16 stored;
    __builtin_memcpy(&stored, data, sizeof(stored));
    const Uint16 bits = Widen(stored) << 16;
    return BitCast<Float16>(bits);
  }
};

struct F16Elements {
  static constexpr int64_t kBytes = 2;
  static Float16 LoadAsFloat(const uint8_t* data) {
    Short16 stored;
    __builtin_memcpy(&stored, data, sizeof(stored));
    const Uint16 bits = Widen(stored);
    // Exponent and mantissa in place, the exponent's bias put right by a multiplication, which also
    // makes subnormals come out exactly.
    const Uint16 magnitude = (bits & 0x7fffu) << 13;
    const Float16 scaled = BitCast<Float16>(magnitude) * 0x1p112f;
    const Uint16 result = BitCast<Uint16>(scaled) | ((bits & 0x8000u) << 16);
    return BitCast<Float16>(result);
  }
};

// e^x, relative error below 3e-7; 0 for x < -87, e^88 for x > 88. Cody and Waite's reduction and a
// polynomial of degree 6.
[[maybe_unused]] inline Float16 Exp(Float16 x) {
  const Float16 clamped_low = x < -87.0f ? Broadcast(-87.0f) : x;
  const Float16 clamped = clamped_low > 88.0f ? Broadcast(88.0f) : clamped_low;
  const Float16 magic = Broadcast(12582912.0f);  // 1.5 * 2^23: the sum's last place is a unit
  const Float16 shifted = clamped * 1.44269504f + magic;
  const Float16 n = shifted - magic;
  const Float16 r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  Float16 p = Broadcast(1.3888889e-3f);
  p = p * r + 8.3333333e-3f;
  p = p * r + 4.1666667e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Int16 exponent = (BitCast<Int16>(shifted) - BitCast<Int16>(magic)) << 23;
  const Int16 bits = BitCast<Int16>(p) + exponent;
  return x < -87.0f ? Float16{} : BitCast<Float16>(bits);
}

}  // namespace
}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BASE_VECTOR16_H_
