// Inputs of a product rounded to integers with one scale for a token, so that sums are exact: the
// same in any order, in any batch and on any instruction set.
#ifndef ULTRASKETCH_ENGINE_CODECS_ROUNDED_INPUT_H_
#define ULTRASKETCH_ENGINE_CODECS_ROUNDED_INPUT_H_

#include <cstdint>

namespace ultrasketch {

// Precedes a token's integers q in its prepared input.
struct RoundedInput {
  float scale;    // x is about scale * q
  int32_t total;  // sum of |q|, modulo 2^32
};

// Internal linkage: object files of different instruction sets are linked together.
namespace {

// Rounds x [size] to q, with zeros to `padded_size`:
//
//   largest = the largest |x[i]|
//   q[i]    = x[i] * (limit / largest) to the nearest integer, ties to even
//   scale   = largest / limit
//
// An input whose largest number is below 2^-100 is zero; one that is not finite has a scale of NaN.
// `limit` is at most 32767.
[[maybe_unused]] RoundedInput RoundInput(const float* x, int64_t size, int64_t padded_size,
                                         int32_t limit, int16_t* q) {
  // Magnitudes in the order of their bits, where NaN comes after infinity.
  int32_t largest_bits = 0;
  for (int64_t i = 0; i < size; ++i) {
    int32_t bits;
    __builtin_memcpy(&bits, x + i, sizeof(bits));
    bits &= 0x7fffffff;
    largest_bits = bits > largest_bits ? bits : largest_bits;
  }
  float largest;
  __builtin_memcpy(&largest, &largest_bits, sizeof(largest));
  const bool is_finite = largest_bits < 0x7f800000;
  if (!is_finite || largest < 0x1p-100f) {
    __builtin_memset(q, 0, static_cast<uint64_t>(padded_size) * sizeof(*q));
    return {is_finite ? 0.0f : __builtin_nanf(""), 0};
  }
  const float factor = static_cast<float>(limit) / largest;
  constexpr float kUnits = 0x1.8p23f;  // the last bit of numbers near it is 1
  uint32_t total = 0;
  for (int64_t i = 0; i < size; ++i) {
    const float shifted = x[i] * factor + kUnits;
    int32_t integer;
    __builtin_memcpy(&integer, &shifted, sizeof(integer));
    integer -= 0x4b400000;
    q[i] = static_cast<int16_t>(integer);
    total += static_cast<uint32_t>(integer < 0 ? -integer : integer);
  }
  for (int64_t i = size; i < padded_size; ++i) q[i] = 0;
  return {largest / static_cast<float>(limit), static_cast<int32_t>(total)};
}

}  // namespace
}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_ROUNDED_INPUT_H_
