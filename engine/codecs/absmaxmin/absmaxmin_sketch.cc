#include "engine/codecs/absmaxmin/absmaxmin_sketch.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace ultrasketch {

void InsertMinima(const AbsMaxMinLayout& layout, int64_t class_index, const float* weights,
                  float* minima) {
  const AbsMaxMinClass& sketch_class = layout.classes()[static_cast<size_t>(class_index)];
  std::fill_n(minima, sketch_class.num_buckets(), std::numeric_limits<float>::infinity());
  const int64_t first_bucket = layout.FirstBucketOf(class_index);
  const int32_t* columns = layout.columns().data() + layout.FirstPlaceOf(class_index);
  for (int64_t hash_row = 0; hash_row < sketch_class.hash_rows; ++hash_row) {
    const int32_t* buckets = layout.BucketsOf(class_index, hash_row).data();
    for (int64_t place = 0; place < sketch_class.num_columns; ++place) {
      float& kept = minima[buckets[place] - first_bucket];
      const float weight = weights[columns[place]];
      if (std::abs(weight) < std::abs(kept)) kept = weight;
    }
  }
}

int8_t QuantizeLevel(const AbsMaxMinClass& sketch_class, float value, float step) {
  // In double: a step times a level is exact, a quotient may still be rounded up to an integer.
  const double unit = static_cast<double>(step) * sketch_class.unit();
  if (unit == 0) return 0;
  double level =
      std::clamp(std::trunc(value / unit), static_cast<double>(sketch_class.least_level()),
                 static_cast<double>(sketch_class.largest_level()));
  if (std::abs(level) * unit > std::abs(value)) level -= std::copysign(1.0, level);
  return static_cast<int8_t>(level);
}

void InsertRow(const AbsMaxMinLayout& layout, const float* weights, float step, int8_t* levels) {
  std::vector<float> minima;
  for (int64_t index = 0; index < layout.num_classes(); ++index) {
    const AbsMaxMinClass& sketch_class = layout.classes()[static_cast<size_t>(index)];
    minima.resize(static_cast<size_t>(sketch_class.num_buckets()));
    InsertMinima(layout, index, weights, minima.data());
    for (const float value : minima) *levels++ = QuantizeLevel(sketch_class, value, step);
  }
}

void QueryRow(const AbsMaxMinLayout& layout, const int8_t* levels, float* out) {
  for (int64_t index = 0; index < layout.num_classes(); ++index) {
    const AbsMaxMinClass& sketch_class = layout.classes()[static_cast<size_t>(index)];
    const int32_t* columns = layout.columns().data() + layout.FirstPlaceOf(index);
    const int32_t* first_row = layout.BucketsOf(index, 0).data();
    for (int64_t place = 0; place < sketch_class.num_columns; ++place) {
      int level = levels[first_row[place]];
      for (int64_t hash_row = 1; hash_row < sketch_class.hash_rows; ++hash_row) {
        const int other = levels[first_row[hash_row * sketch_class.num_columns + place]];
        if (std::abs(other) > std::abs(level)) level = other;
      }
      out[columns[place]] = sketch_class.unit() * static_cast<float>(level);
    }
  }
}

}  // namespace ultrasketch
