#include "engine/kv/int4_row.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>

#include "engine/kv/int8_row.h"

namespace ultrasketch {

void RotateRow(absl::Span<float> row) {
  const size_t block = row.size() & (~row.size() + 1);
  const float factor = 1.0f / std::sqrt(static_cast<float>(block));
  for (float& value : row) value *= factor;
  for (size_t half = 1; half < block; half *= 2) {
    for (size_t first = 0; first < row.size(); first += 2 * half) {
      float* const low = row.data() + first;
      float* const high = low + half;
      for (size_t i = 0; i < half; ++i) {
        const float sum = low[i] + high[i];
        high[i] = low[i] - high[i];
        low[i] = sum;
      }
    }
  }
}

uint16_t RoundToInt4(absl::Span<const float> group, uint8_t* codes) {
  constexpr uint32_t kInfinity = 0x7f800000u;
  constexpr uint16_t kNaN = 0x7fc0u;
  uint32_t largest = 0;  // NaN is more than infinity, and that more than what is finite
  for (const float value : group) {
    largest = std::max(largest, std::bit_cast<uint32_t>(value) & 0x7fffffffu);
  }
  std::fill_n(codes, group.size(), uint8_t{8});
  if (largest >= kInfinity) return kNaN;
  if (std::bit_cast<float>(largest) < 0x1p-100f) return 0;
  const auto scale = static_cast<uint16_t>(
      (std::bit_cast<uint32_t>(std::bit_cast<float>(largest) / kInt4Levels[15]) + 0x8000u) >> 16);
  const float inverse = 1.0f / ScaleOf(scale);
  for (size_t i = 0; i < group.size(); ++i) {
    const float magnitude = std::fabs(group[i] * inverse);
    int level = 0;
    for (int next = 9; next < 16; ++next) {
      const float middle = 0.5f * static_cast<float>(kInt4Levels[next - 1] + kInt4Levels[next]);
      level += magnitude > middle ? 1 : 0;
    }
    codes[i] = static_cast<uint8_t>(group[i] < 0 ? 7 - level : 8 + level);
  }
  return scale;
}

}  // namespace ultrasketch
