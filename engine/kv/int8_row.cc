#include "engine/kv/int8_row.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>

namespace ultrasketch {

uint16_t RoundToInt8(absl::Span<const float> row, int8_t* out) {
  uint32_t largest = 0;  // NaN is more than infinity, and that more than what is finite
  for (const float value : row) {
    largest = std::max(largest, std::bit_cast<uint32_t>(value) & 0x7fffffffu);
  }
  constexpr uint32_t kInfinity = 0x7f800000u;
  constexpr uint16_t kNaN = 0x7fc0u;
  std::fill_n(out, row.size(), int8_t{0});
  if (largest >= kInfinity) return kNaN;
  if (std::bit_cast<float>(largest) < 0x1p-100f) return 0;
  const float least = std::bit_cast<float>(largest) / kMostInt8;
  const uint32_t scale = (std::bit_cast<uint32_t>(least) + 0xffffu) >> 16;
  const float inverse = 1.0f / ScaleOf(static_cast<uint16_t>(scale));
  for (size_t i = 0; i < row.size(); ++i) {
    // Of so small a number the sum's last place is a unit: it rounds to the nearest, ties to even.
    constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
    const float rounded = (row[i] * inverse + kMagic) - kMagic;
    out[i] = static_cast<int8_t>(std::clamp(rounded, -float{kMostInt8}, float{kMostInt8}));
  }
  return static_cast<uint16_t>(scale);
}

float ScaleOf(uint16_t bfloat16) { return std::bit_cast<float>(uint32_t{bfloat16} << 16); }

}  // namespace ultrasketch
