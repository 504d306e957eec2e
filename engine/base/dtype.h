// Element types of stored tensors and conversions between the 16-bit floating
// types and float.
#ifndef ULTRASKETCH_ENGINE_BASE_DTYPE_H_
#define ULTRASKETCH_ENGINE_BASE_DTYPE_H_

#include <bit>
#include <cstdint>
#include <optional>
#include <string_view>

namespace ultrasketch {

// The fixed-size types of the safetensors format.
enum class DType : uint8_t {
  kBool,
  kU8,
  kI8,
  kU16,
  kI16,
  kF16,
  kBF16,
  kU32,
  kI32,
  kF32,
  kU64,
  kI64,
  kF64,
};

// Bytes of one element.
int ElementBytes(DType dtype);

// Whether it is one of F32, F16, BF16 and F64.
bool IsFloating(DType dtype);

// The safetensors spelling: "BF16", "F32", "U8", ...
std::string_view DTypeName(DType dtype);
std::optional<DType> DTypeFromName(std::string_view name);

inline float Bf16ToFloat(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
inline uint16_t FloatToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// IEEE 754 binary16, subnormals included. FloatToHalf rounds to nearest, ties
// to even, and overflows to infinity.
float HalfToFloat(uint16_t bits);
uint16_t FloatToHalf(float value);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BASE_DTYPE_H_
