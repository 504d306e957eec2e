#include "engine/codecs/fold/cuda/fold_sketch.h"

#include <algorithm>
#include <cstring>

namespace ultrasketch::cuda {
namespace {

template <typename Entry>
std::vector<uint8_t> PackColumns(const FoldLayout& layout) {
  constexpr Entry kSign = static_cast<Entry>(Entry{1} << (8 * sizeof(Entry) - 1));
  std::vector<Entry> entries;
  entries.reserve(layout.columns_by_group().size());
  for (const int32_t column : layout.columns_by_group()) {
    const bool negative = layout.sign_of_column()[static_cast<size_t>(column)] < 0;
    entries.push_back(static_cast<Entry>(static_cast<Entry>(column) | (negative ? kSign : 0)));
  }
  std::vector<uint8_t> bytes(entries.size() * sizeof(Entry));
  std::memcpy(bytes.data(), entries.data(), bytes.size());
  return bytes;
}

}  // namespace

FoldSketch MakeFoldSketch(const FoldLayout& layout) {
  FoldSketch sketch;
  SketchGroup group;
  for (const FoldClass& fold_class : layout.classes()) {
    group.num_buckets = static_cast<int32_t>(fold_class.num_groups());
    group.columns_per_bucket = static_cast<int32_t>(fold_class.columns_per_group);
    const float unit = FoldUnit(fold_class.planes);
    for (int64_t plane = 0; plane < fold_class.planes; ++plane) {
      group.weight = unit * static_cast<float>(int64_t{1} << (fold_class.planes - 1 - plane));
      sketch.groups.push_back(group);
      sketch.max_gain =
          std::max(sketch.max_gain, group.weight * static_cast<float>(group.columns_per_bucket));
      group.first_bucket += group.num_buckets;
    }
    group.first_column += static_cast<int32_t>(fold_class.num_columns);
  }
  if (layout.cols() <= kMaxNarrowColumns) {
    sketch.columns = PackColumns<uint16_t>(layout);
  } else {
    sketch.column_bytes = 4;
    sketch.columns = PackColumns<uint32_t>(layout);
  }
  return sketch;
}

}  // namespace ultrasketch::cuda
