#include "engine/codecs/fold/cuda/fold_sketch.h"

#include <algorithm>

#include "engine/codecs/cuda/column_pairs.h"

namespace ultrasketch::cuda {

FoldSketch MakeFoldSketch(const FoldLayout& layout) {
  FoldSketch sketch;
  ColumnPairs pairs(layout.cols());
  SketchGroup group;
  auto column = layout.columns_by_group().begin();
  for (const FoldClass& fold_class : layout.classes()) {
    group.num_buckets = static_cast<int32_t>(fold_class.num_groups());
    group.pairs_per_bucket = ColumnPairs::PairsOf(fold_class.columns_per_group);
    group.first_pair = pairs.num_pairs();
    for (int64_t bucket = 0; bucket < fold_class.num_groups(); ++bucket) {
      for (int64_t i = 0; i < fold_class.columns_per_group; ++i, ++column) {
        pairs.Add(*column, layout.sign_of_column()[static_cast<size_t>(*column)] < 0);
      }
      pairs.EndBucket();
    }
    const float unit = FoldUnit(fold_class.planes);
    for (int64_t plane = 0; plane < fold_class.planes; ++plane) {
      group.weight = unit * static_cast<float>(int64_t{1} << (fold_class.planes - 1 - plane));
      sketch.groups.push_back(group);
      sketch.max_gain = std::max(sketch.max_gain,
                                 group.weight * static_cast<float>(fold_class.columns_per_group));
      group.first_bucket += group.num_buckets;
    }
  }
  sketch.column_bytes = pairs.column_bytes();
  sketch.columns = pairs.Finish();
  sketch.num_pairs = pairs.num_pairs();
  return sketch;
}

}  // namespace ultrasketch::cuda
