#include "engine/kv/fp16_row.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>

namespace ultrasketch {
namespace {

// Without branches, so that compilers make vectors of it.
uint16_t ToFp16(float value) {
  constexpr uint32_t kInfinity = 0x7f800000u;
  constexpr uint32_t kLargest = 0x7bffu;
  constexpr uint32_t kLeastNormal = 0x38800000u;  // 2^-14
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Thirteen bits less of the mantissa and another bias of the exponent. What is rounded up may
  // carry into the exponent, as it should.
  const uint32_t normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
  // The last place of 0.5 is the unit of subnormal numbers: the addition rounds to it.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) -
                             std::bit_cast<uint32_t>(0.5f);
  const uint32_t finite = magnitude < kLeastNormal ? subnormal : std::min(normal, kLargest);
  const uint32_t other = magnitude == kInfinity ? 0x7c00u : 0x7e00u;
  return static_cast<uint16_t>((bits >> 16 & 0x8000u) | (magnitude < kInfinity ? finite : other));
}

}  // namespace

void RoundToFp16(absl::Span<const float> row, uint16_t* out) {
  for (size_t i = 0; i < row.size(); ++i) out[i] = ToFp16(row[i]);
}

}  // namespace ultrasketch
