#include "engine/codecs/absmaxmin/cuda/absmaxmin_tables.h"

#include <algorithm>

#include "engine/base/check.h"

namespace ultrasketch::cuda {
namespace {

static_assert(kMaxBucketParts == kMaxAbsMaxMinClasses);
static_assert(kMaxDeviceHashRows == kMaxHashRows);

}  // namespace

AbsMaxMinTables MakeAbsMaxMinTables(const AbsMaxMinLayout& layout) {
  AbsMaxMinTables tables;
  int64_t max_hash_rows = 1;
  for (const AbsMaxMinClass& bucket_class : layout.classes()) {
    max_hash_rows = std::max(max_hash_rows, bucket_class.hash_rows);
  }
  tables.entry_words =
      static_cast<int>((max_hash_rows + kHashRowsPerEntryWord - 1) / kHashRowsPerEntryWord);
  const int64_t place_entries = int64_t{tables.entry_words} * kHashRowsPerEntryWord;
  ScatterIndices scatter_indices(layout.cols());
  for (int64_t index = 0; index < layout.num_classes(); ++index) {
    const AbsMaxMinClass& bucket_class = layout.classes()[static_cast<size_t>(index)];
    US_CHECK(bucket_class.buckets <= int64_t{1} << 16);
    BucketPart part;
    part.first_k_tile = static_cast<int32_t>(tables.num_k_tiles);
    tables.num_k_tiles += NumKTiles(bucket_class.num_columns);
    part.end_k_tile = static_cast<int32_t>(tables.num_k_tiles);
    part.num_columns = static_cast<int32_t>(bucket_class.num_columns);
    part.hash_rows = static_cast<int32_t>(bucket_class.hash_rows);
    part.bits = static_cast<int32_t>(bucket_class.bits);
    part.unit_exponent = static_cast<int32_t>(bucket_class.unit_exponent);
    part.first_word = static_cast<int32_t>(tables.words_per_block);
    part.words_per_hash_row = static_cast<int32_t>(bucket_class.buckets * bucket_class.bits);
    // Words are loaded up to four at a time.
    tables.words_per_block += (bucket_class.num_bits() + 3) / 4 * 4;

    tables.parts.push_back(part);

    const int64_t num_places = int64_t{part.end_k_tile - part.first_k_tile} * kKTileColumns;
    const int64_t first_bucket = layout.FirstBucketOf(index);
    tables.first_codes.push_back(first_bucket);
    const size_t first_entry = tables.entries.size();
    tables.entries.resize(first_entry + static_cast<size_t>(num_places * place_entries));
    uint16_t* entries = tables.entries.data() + first_entry;
    for (int64_t hash_row = 0; hash_row < bucket_class.hash_rows; ++hash_row) {
      const auto buckets = layout.BucketsOf(index, hash_row);
      const int64_t first = first_bucket + hash_row * bucket_class.buckets;
      for (size_t place = 0; place < buckets.size(); ++place) {
        entries[static_cast<int64_t>(place) * place_entries + hash_row] =
            static_cast<uint16_t>(buckets[place] - first);
      }
    }

    TransformGroup group;
    group.first_bucket = part.first_k_tile * kKTileColumns;
    group.num_buckets = part.num_columns;
    scatter_indices.Begin(group);
    const int64_t first_place = layout.FirstPlaceOf(index);
    for (int64_t place = 0; place < bucket_class.num_columns; ++place) {
      scatter_indices.Put(group, place, 0,
                          layout.columns()[static_cast<size_t>(first_place + place)],
                          /*is_negative=*/false);
    }
    tables.transform.groups.push_back(group);
    if (num_places > bucket_class.num_columns) {
      group.first_bucket += group.num_buckets;
      group.num_buckets = static_cast<int32_t>(num_places - bucket_class.num_columns);
      group.columns_per_bucket = 0;
      tables.transform.groups.push_back(group);
    }
  }
  scatter_indices.Pack(tables.transform);
  return tables;
}

}  // namespace ultrasketch::cuda
