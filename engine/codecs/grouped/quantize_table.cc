#include "engine/codecs/grouped/quantize_table.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "engine/base/dtype.h"

namespace ultrasketch {
namespace {

// Scales that are tried for int4: max|w| / 7 times 1, 1 - 1/24, ...
constexpr int kNumScales = 10;
constexpr float kScaleStep = 1.0f / 24;

// The integers nearest to weights / scale, as floats, so that loops over them become vectors.
struct Rounding {
  float scale = 0;
  float values[kGroupColumns] = {};
};

Rounding Round(const float (&weights)[kGroupColumns], float scale, float limit) {
  Rounding rounding;
  uint16_t stored = FloatToBf16(scale);
  // Rounded up, the largest float's scale would decode to infinity.
  if (!std::isfinite(Bf16ToFloat(stored) * limit)) --stored;
  rounding.scale = Bf16ToFloat(stored);
  if (rounding.scale == 0) return rounding;
  // Adding 1.5 * 2^23 leaves no places after the point: nearest, ties to even.
  constexpr float kMagic = 12582912.0f;
  for (int64_t i = 0; i < kGroupColumns; ++i) {
    const float ratio = weights[i] / rounding.scale;
    const float low = ratio < -limit ? -limit : ratio;
    rounding.values[i] = (low > limit ? limit : low) + kMagic - kMagic;
  }
  return rounding;
}

// The sum of term(i) over a group, in lanes that become a vector.
template <typename Term>
float SumOverGroup(Term term) {
  constexpr int64_t kLanes = 8;
  float lanes[kLanes] = {};
  for (int64_t first = 0; first < kGroupColumns; first += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(first + lane);
  }
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  return sum;
}

// The scale that is best for a rounding's integers; 0 when they are all zero.
float BestScale(const float (&weights)[kGroupColumns], const Rounding& rounding) {
  const float energy =
      SumOverGroup([&](int64_t i) { return rounding.values[i] * rounding.values[i]; });
  if (energy == 0) return 0;
  return SumOverGroup([&](int64_t i) { return weights[i] / energy * rounding.values[i]; });
}

// In units of the square of `unit`, which the weights are of the order of: no overflow.
float SquaredError(const float (&weights)[kGroupColumns], const Rounding& rounding, float unit) {
  const float inverse = 1 / unit;
  const float scale = rounding.scale * inverse;
  return SumOverGroup([&](int64_t i) {
    const float difference = weights[i] * inverse - rounding.values[i] * scale;
    return difference * difference;
  });
}

// Writes a rounded group at its place in a row.
void StoreGroup(const RoundedGroup& group, int64_t first_column, int64_t count, GroupedType type,
                uint8_t* row) {
  if (type == GroupedType::kInt8) {
    for (int64_t i = 0; i < count; ++i)
      row[first_column + i] = static_cast<uint8_t>(group.values[i]);
    return;
  }
  for (int64_t i = 0; i < count; i += 2) {
    const int low = group.values[i] & 15;
    const int high = group.values[i + 1] & 15;  // 0 after the last column
    row[(first_column + i) / 2] = static_cast<uint8_t>(low | high << 4);
  }
}

}  // namespace

RoundedGroup RoundGroup(const float* weights, int64_t count, GroupedType type) {
  float padded[kGroupColumns] = {};
  std::copy_n(weights, count, padded);
  float largest = 0;
  for (const float weight : padded) largest = std::max(largest, std::fabs(weight));
  const auto limit = static_cast<float>(GroupedLimit(type));
  Rounding best = Round(padded, largest / limit, limit);
  if (type == GroupedType::kInt4 && best.scale >= std::numeric_limits<float>::min()) {
    float least_error = SquaredError(padded, best, largest);
    for (int step = 0; step < kNumScales; ++step) {
      const float scale = largest / limit * (1 - kScaleStep * static_cast<float>(step));
      const Rounding refitted =
          Round(padded, BestScale(padded, Round(padded, scale, limit)), limit);
      const float error = SquaredError(padded, refitted, largest);
      if (error < least_error) {
        least_error = error;
        best = refitted;
      }
    }
  }
  RoundedGroup group;
  group.scale = FloatToBf16(best.scale);
  for (int64_t i = 0; i < kGroupColumns; ++i) group.values[i] = static_cast<int8_t>(best.values[i]);
  return group;
}

std::unique_ptr<GroupedTable> QuantizeTable(const EncodedLinear& table, GroupedType type,
                                            ThreadPool& pool) {
  const LinearSite& site = table.site();
  const int64_t row_bytes = GroupedRowBytes(type, site.cols);
  const int64_t groups = GroupsInRow(site.cols);
  std::vector<uint8_t> values(static_cast<size_t>(site.rows * row_bytes));
  std::vector<uint16_t> scales(static_cast<size_t>(site.rows * groups));
  pool.ParallelFor(site.rows, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<float> weights(static_cast<size_t>(site.cols));
    for (int64_t row = begin; row < end; ++row) {
      table.DecodeRows(row, 1, weights.data());
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t first = group * kGroupColumns;
        const int64_t count = std::min(kGroupColumns, site.cols - first);
        const RoundedGroup rounded = RoundGroup(weights.data() + first, count, type);
        scales[static_cast<size_t>(row * groups + group)] = rounded.scale;
        StoreGroup(rounded, first, count, type, values.data() + row * row_bytes);
      }
    }
  });
  return GroupedTable::FromParts(site, type, std::move(values), std::move(scales));
}

}  // namespace ultrasketch
