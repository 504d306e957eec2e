#include "engine/codecs/fold/cuda/fold_transform.h"

#include <algorithm>

namespace ultrasketch::cuda {

TransformTables MakeFoldTransform(const FoldLayout& layout) {
  TransformTables transform;
  ScatterIndices scatter_indices(layout.cols());
  TransformGroup group;
  auto column = layout.columns_by_group().begin();
  for (const FoldClass& fold_class : layout.classes()) {
    group.num_buckets = static_cast<int32_t>(fold_class.num_groups());
    group.columns_per_bucket = static_cast<int32_t>(fold_class.columns_per_group);
    scatter_indices.Begin(group);
    for (int64_t bucket = 0; bucket < fold_class.num_groups(); ++bucket) {
      for (int64_t i = 0; i < fold_class.columns_per_group; ++i, ++column) {
        scatter_indices.Put(group, bucket, i, *column,
                            layout.sign_of_column()[static_cast<size_t>(*column)] < 0);
      }
    }
    const float unit = FoldUnit(fold_class.planes);
    for (int64_t plane = 0; plane < fold_class.planes; ++plane) {
      group.weight = unit * static_cast<float>(int64_t{1} << (fold_class.planes - 1 - plane));
      transform.groups.push_back(group);
      transform.max_amplification = std::max(
          transform.max_amplification, group.weight * static_cast<float>(group.columns_per_bucket));
      group.first_bucket += group.num_buckets;
    }
  }
  scatter_indices.Pack(transform);
  return transform;
}

}  // namespace ultrasketch::cuda
