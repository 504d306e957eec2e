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

#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// How vectors wider than a register are passed does not matter: nothing here is called from another
// object file.
#if defined(__clang__)
#pragma clang diagnostic ignored "-Wpsabi"
#endif

namespace ultrasketch {
namespace {

// Sixteen lanes are as many registers as they need. Compilers take a vector that is wider than the
// registers apart lane by lane, so the parts are spelled out.
#if defined(__AVX512F__)
constexpr int kParts = 1;
#elif defined(__AVX2__)
constexpr int kParts = 2;
#else
constexpr int kParts = 4;
#endif
constexpr int kPartLanes = 16 / kParts;

typedef float FloatPart __attribute__((vector_size(4 * kPartLanes)));
typedef uint32_t UintPart __attribute__((vector_size(4 * kPartLanes)));
typedef int32_t IntPart __attribute__((vector_size(4 * kPartLanes)));
typedef uint16_t ShortPart __attribute__((vector_size(2 * kPartLanes)));

template <typename To, typename From>
inline To BitCast(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  __builtin_memcpy(&result, &value, sizeof(result));
  return result;
}

// One member a part rather than an array: gcc 12 keeps members in registers.
struct Float16 {
  Float16() = default;
  Float16(float value) : a(FloatPart{} + value) {  // in all lanes
#if !defined(__AVX512F__)
    b = a;
#if !defined(__AVX2__)
    c = d = a;
#endif
#endif
  }

  FloatPart a;
#if !defined(__AVX512F__)
  FloatPart b;
#if !defined(__AVX2__)
  FloatPart c, d;
#endif
#endif
};

// Applies `function` to the parts of the values in turn.
template <typename Function, typename... Values>
inline Float16 ForParts(Function function, const Values&... values) {
  Float16 result;
  result.a = function(values.a...);
#if !defined(__AVX512F__)
  result.b = function(values.b...);
#if !defined(__AVX2__)
  result.c = function(values.c...);
  result.d = function(values.d...);
#endif
#endif
  return result;
}

[[maybe_unused]] inline Float16 operator+(const Float16& x, const Float16& y) {
  return ForParts([](FloatPart a, FloatPart b) { return a + b; }, x, y);
}
[[maybe_unused]] inline Float16 operator-(const Float16& x, const Float16& y) {
  return ForParts([](FloatPart a, FloatPart b) { return a - b; }, x, y);
}
[[maybe_unused]] inline Float16 operator*(const Float16& x, const Float16& y) {
  return ForParts([](FloatPart a, FloatPart b) { return a * b; }, x, y);
}
[[maybe_unused]] inline Float16 operator/(const Float16& x, const Float16& y) {
  return ForParts([](FloatPart a, FloatPart b) { return a / b; }, x, y);
}
[[maybe_unused]] inline Float16 operator-(const Float16& x) {
  return ForParts([](FloatPart a) { return -a; }, x);
}
[[maybe_unused]] inline void operator+=(Float16& x, const Float16& y) { x = x + y; }

// The larger in each lane, y where one is NaN.
[[maybe_unused]] inline Float16 Larger(const Float16& x, const Float16& y) {
  return ForParts([](FloatPart a, FloatPart b) { return a > b ? a : b; }, x, y);
}

// a * b + c, rounded once where the instruction set can. Written out, because a compiler's own
// choice of the products to contract depends on the code around them, and so would the bits of a
// sum.
[[maybe_unused]] inline FloatPart MultiplyAddPart(FloatPart a, FloatPart b, FloatPart c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return BitCast<FloatPart>(
      vfmaq_f32(BitCast<float32x4_t>(c), BitCast<float32x4_t>(a), BitCast<float32x4_t>(b)));
#else
  return a * b + c;
#endif
}

[[maybe_unused]] inline Float16 MultiplyAdd(const Float16& x, const Float16& y, const Float16& z) {
  return ForParts(MultiplyAddPart, x, y, z);
}

// Bytes of each part of sixteen elements.
struct PartPointers {
  PartPointers(const void* data, int64_t part_bytes)
      : a(static_cast<const uint8_t*>(data)),
        b(a + part_bytes),
        c(b + part_bytes),
        d(c + part_bytes) {}
  const uint8_t* a;
  const uint8_t* b;
  const uint8_t* c;
  const uint8_t* d;
};

[[maybe_unused]] inline FloatPart LoadPart(const uint8_t* data) {
  FloatPart value;
  __builtin_memcpy(&value, data, sizeof(value));
  return value;
}

[[maybe_unused]] inline Float16 Load(const float* data) {
  return ForParts(LoadPart, PartPointers(data, sizeof(FloatPart)));
}

[[maybe_unused]] inline void Store(const Float16& value, float* data) {
  __builtin_memcpy(data, &value.a, sizeof(FloatPart));
#if !defined(__AVX512F__)
  __builtin_memcpy(data + kPartLanes, &value.b, sizeof(FloatPart));
#if !defined(__AVX2__)
  __builtin_memcpy(data + 2 * kPartLanes, &value.c, sizeof(FloatPart));
  __builtin_memcpy(data + 3 * kPartLanes, &value.d, sizeof(FloatPart));
#endif
#endif
}

// The first `count` < 16 floats, zeros after them.
[[maybe_unused]] inline Float16 LoadPartial(const float* data, int64_t count) {
  float buffer[16] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = data[i];
  return Load(buffer);
}

[[maybe_unused]] inline void StorePartial(const Float16& value, int64_t count, float* data) {
  float buffer[16];
  Store(value, buffer);
  for (int64_t i = 0; i < count; ++i) data[i] = buffer[i];
}

// Combines all lanes by `combine`, in one fixed order: a tree of halves, lane i with i + 8, then
// with i + 4, i + 2, i + 1.
template <typename Combine>
inline float Reduce(const Float16& v, Combine combine) {
#if defined(__AVX512F__)
  FloatPart x = v.a;
#define US_SWAP_LANES(distance)                                                                 \
  __builtin_shufflevector(x, x, 0 ^ (distance), 1 ^ (distance), 2 ^ (distance), 3 ^ (distance), \
                          4 ^ (distance), 5 ^ (distance), 6 ^ (distance), 7 ^ (distance),       \
                          8 ^ (distance), 9 ^ (distance), 10 ^ (distance), 11 ^ (distance),     \
                          12 ^ (distance), 13 ^ (distance), 14 ^ (distance), 15 ^ (distance))
  x = combine(x, US_SWAP_LANES(8));
  x = combine(x, US_SWAP_LANES(4));
#elif defined(__AVX2__)
  FloatPart x = combine(v.a, v.b);
#define US_SWAP_LANES(distance)                                                                 \
  __builtin_shufflevector(x, x, 0 ^ (distance), 1 ^ (distance), 2 ^ (distance), 3 ^ (distance), \
                          4 ^ (distance), 5 ^ (distance), 6 ^ (distance), 7 ^ (distance))
  x = combine(x, US_SWAP_LANES(4));
#else
  FloatPart x = combine(combine(v.a, v.c), combine(v.b, v.d));
#define US_SWAP_LANES(distance) \
  __builtin_shufflevector(x, x, 0 ^ (distance), 1 ^ (distance), 2 ^ (distance), 3 ^ (distance))
#endif
  x = combine(x, US_SWAP_LANES(2));
  x = combine(x, US_SWAP_LANES(1));
#undef US_SWAP_LANES
  return x[0];
}

[[maybe_unused]] inline float Sum(const Float16& v) {
  return Reduce(v, [](FloatPart a, FloatPart b) { return a + b; });
}

[[maybe_unused]] inline float Maximum(const Float16& v) {
  return Reduce(v, [](FloatPart a, FloatPart b) { return a > b ? a : b; });
}

[[maybe_unused]] inline UintPart Widen(ShortPart v) {
#if defined(__AVX512F__)
  // gcc 12 takes eight instructions for what is one.
  return BitCast<UintPart>(_mm512_cvtepu16_epi32(BitCast<__m256i>(v)));
#elif defined(__AVX2__)
  return BitCast<UintPart>(_mm256_cvtepu16_epi32(BitCast<__m128i>(v)));
#else
  return __builtin_convertvector(v, UintPart);
#endif
}

// Sixteen stored numbers of 16 bits, each part widened to 32 and then through `convert`.
template <typename Convert>
inline Float16 LoadWidened(const uint8_t* data, Convert convert) {
  const auto load = [&](const uint8_t* part) {
    ShortPart stored;
    __builtin_memcpy(&stored, part, sizeof(stored));
    return convert(Widen(stored));
  };
  return ForParts(load, PartPointers(data, sizeof(ShortPart)));
}

typedef int8_t Bytes16 __attribute__((vector_size(16)));

[[maybe_unused]] inline Bytes16 LoadBytes16(const void* data) {
  Bytes16 bytes;
  __builtin_memcpy(&bytes, data, sizeof(bytes));
  return bytes;
}

[[maybe_unused]] inline Float16 ToFloats(Bytes16 bytes) {
  Float16 result;
#if defined(__AVX512F__)
  result.a = BitCast<FloatPart>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(BitCast<__m128i>(bytes))));
#elif defined(__AVX2__)
  const auto low = BitCast<__m128i>(bytes);
  const __m128i high = _mm_unpackhi_epi64(low, low);
  result.a = BitCast<FloatPart>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low)));
  result.b = BitCast<FloatPart>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)));
#else
  typedef int8_t BytePart __attribute__((vector_size(kPartLanes)));
  struct {
    BytePart a, b, c, d;
  } parts;
  static_assert(sizeof(parts) == sizeof(bytes));
  __builtin_memcpy(&parts, &bytes, sizeof(bytes));
  const auto widen = [](BytePart part) {
    return __builtin_convertvector(__builtin_convertvector(part, IntPart), FloatPart);
  };
  result.a = widen(parts.a);
  result.b = widen(parts.b);
  result.c = widen(parts.c);
  result.d = widen(parts.d);
#endif
  return result;
}

// Sixteen signed bytes.
[[maybe_unused]] inline Float16 LoadBytes(const int8_t* data) {
  return ToFloats(LoadBytes16(data));
}

// The lower and the upper halves of bytes.
[[maybe_unused]] inline Bytes16 LowHalves(Bytes16 pairs) { return pairs & 0x0f; }
[[maybe_unused]] inline Bytes16 HighHalves(Bytes16 pairs) {
  typedef uint16_t Words8 __attribute__((vector_size(16)));
  return BitCast<Bytes16>(BitCast<Words8>(pairs) >> 4) & 0x0f;
}

// The halves of eight bytes, the lower one of each first.
[[maybe_unused]] inline Bytes16 SpreadHalves(const uint8_t* pairs) {
  typedef uint16_t Words8 __attribute__((vector_size(16)));
  typedef uint8_t Bytes8 __attribute__((vector_size(8)));
  Bytes8 bytes;
  __builtin_memcpy(&bytes, pairs, sizeof(bytes));
#if defined(__AVX2__)
  const auto words = BitCast<Words8>(_mm_cvtepu8_epi16(_mm_cvtsi64_si128(BitCast<int64_t>(bytes))));
#else
  const Words8 words = __builtin_convertvector(bytes, Words8);
#endif
  return BitCast<Bytes16>((words | words << 4) & 0x0f0f);
}

// table[index] of each byte; indices are 0 to 15.
[[maybe_unused]] inline Bytes16 LookUp(Bytes16 table, Bytes16 indices) {
#if defined(__AVX2__)
  return BitCast<Bytes16>(_mm_shuffle_epi8(BitCast<__m128i>(table), BitCast<__m128i>(indices)));
#elif defined(__aarch64__)
  return BitCast<Bytes16>(vqtbl1q_s8(BitCast<int8x16_t>(table), BitCast<uint8x16_t>(indices)));
#else
  int8_t from[16];
  int8_t at[16];
  __builtin_memcpy(from, &table, sizeof(from));
  __builtin_memcpy(at, &indices, sizeof(at));
  for (int8_t& byte : at) byte = from[byte];
  return LoadBytes16(at);
#endif
}

// Stored elements to floats, exactly.
struct F32Elements {
  static constexpr int64_t kBytes = 4;
  static Float16 LoadAsFloat(const uint8_t* data) {
    return ForParts(LoadPart, PartPointers(data, sizeof(FloatPart)));
  }
};

struct Bf16Elements {
  static constexpr int64_t kBytes = 2;
  static Float16 LoadAsFloat(const uint8_t* data) {
    return LoadWidened(data, [](UintPart bits) { return BitCast<FloatPart>(bits << 16); });
  }
};

struct F16Elements {
  static constexpr int64_t kBytes = 2;
  static Float16 LoadAsFloat(const uint8_t* data) {
    const auto load = [](const uint8_t* part) {
      ShortPart stored;
      __builtin_memcpy(&stored, part, sizeof(stored));
#if defined(__AVX512F__)
      return BitCast<FloatPart>(_mm512_cvtph_ps(BitCast<__m256i>(stored)));
#elif defined(__AVX2__)
      return BitCast<FloatPart>(_mm256_cvtph_ps(BitCast<__m128i>(stored)));
#elif defined(__aarch64__)
      return BitCast<FloatPart>(vcvt_f32_f16(BitCast<float16x4_t>(stored)));
#else
      // Exponent and mantissa in place, the exponent's bias put right by a multiplication, which
      // also makes subnormals come out exactly; infinity and NaN have the largest exponent.
      const UintPart bits = Widen(stored);
      const UintPart magnitude = (bits & 0x7fffu) << 13;
      const UintPart scaled = BitCast<UintPart>(BitCast<FloatPart>(magnitude) * 0x1p112f);
      const auto is_not_finite = BitCast<UintPart>(magnitude > (0x7bffu << 13));
      return BitCast<FloatPart>(scaled | (is_not_finite & 0x7f800000u) | ((bits & 0x8000u) << 16));
#endif
    };
    return ForParts(load, PartPointers(data, sizeof(ShortPart)));
  }
};

// e^x, relative error below 3e-7; 0 for x < -87, e^88 for x > 88. Cody and Waite's reduction and a
// polynomial of degree 6, every operation rounded by itself: the same bits on all instruction sets.
[[maybe_unused]] inline FloatPart ExpPart(FloatPart x) {
  const FloatPart zero = {};
  const FloatPart low = zero - 87.0f;
  const FloatPart high = zero + 88.0f;
  const FloatPart not_low = x < low ? low : x;
  const FloatPart clamped = not_low > high ? high : not_low;
  const FloatPart magic = zero + 12582912.0f;  // 1.5 * 2^23: the sum's last place is a unit
  const FloatPart shifted = clamped * 1.44269504f + magic;
  const FloatPart n = shifted - magic;
  FloatPart r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  FloatPart p = zero + 1.3888889e-3f;
  p = p * r + 8.3333333e-3f;
  p = p * r + 4.1666667e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const IntPart exponent = (BitCast<IntPart>(shifted) - BitCast<IntPart>(magic)) << 23;
  const FloatPart power = BitCast<FloatPart>(BitCast<IntPart>(p) + exponent);
  return x < low ? zero : power;
}

[[maybe_unused]] inline Float16 Exp(const Float16& x) { return ForParts(ExpPart, x); }

}  // namespace
}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BASE_VECTOR16_H_
