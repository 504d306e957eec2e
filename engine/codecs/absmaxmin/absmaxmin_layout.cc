#include "engine/codecs/absmaxmin/absmaxmin_layout.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/check.h"
#include "engine/base/random.h"

namespace ultrasketch {
namespace {

// FNV-1a, 64 bits (draft-eastlake-fnv).
uint64_t HashName(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char character : name) {
    hash = (hash ^ static_cast<uint8_t>(character)) * 0x100000001b3u;
  }
  return hash;
}

uint64_t KeyOfStream(uint64_t seed, uint64_t stream, int64_t hash_row, int64_t column) {
  const auto words =
      Philox4x32({static_cast<uint32_t>(column), static_cast<uint32_t>(hash_row),
                  static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return uint64_t{words[1]} << 32 | words[0];
}

// INVALID_ARGUMENT unless `value` is in [least, most].
absl::Status CheckRange(int64_t class_index, const char* what, int64_t value, int64_t least,
                        int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("class ", class_index, ": expected ", least,
                                                 " to ", most, " ", what, ", found ", value));
}

absl::Status ValidateClass(int64_t index, const AbsMaxMinClass& sketch_class,
                           int64_t columns_left) {
  if (sketch_class.num_columns < 1 || sketch_class.num_columns > columns_left) {
    return absl::InvalidArgumentError(
        absl::StrCat("class ", index, ": expected 1 to ", columns_left,
                     " columns that are in no class yet, found ", sketch_class.num_columns));
  }
  const int64_t fewest_buckets =
      (sketch_class.num_columns + kMaxColumnsPerBucket - 1) / kMaxColumnsPerBucket;
  absl::Status status =
      CheckRange(index, "buckets", sketch_class.buckets, fewest_buckets, sketch_class.num_columns);
  status.Update(CheckRange(index, "hash rows", sketch_class.hash_rows, 1, kMaxHashRows));
  status.Update(
      CheckRange(index, "bits a bucket", sketch_class.bits, kMinBucketBits, kMaxBucketBits));
  status.Update(
      CheckRange(index, "as unit exponent", sketch_class.unit_exponent, 0, kMaxUnitExponent));
  return status;
}

}  // namespace

absl::Status ValidateAbsMaxMinClasses(int64_t cols, absl::Span<const AbsMaxMinClass> classes) {
  const auto num_classes = static_cast<int64_t>(classes.size());
  if (num_classes < 1 || num_classes > kMaxAbsMaxMinClasses) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected 1 to ", kMaxAbsMaxMinClasses, " classes, found ", num_classes));
  }
  // Kernels count the buckets of a block of rows in 32 bits.
  constexpr int64_t kMostColumns = int64_t{1} << 22;
  if (cols > kMostColumns) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected at most ", kMostColumns, " columns, found ", cols));
  }
  int64_t total = 0;
  for (int64_t index = 0; index < num_classes; ++index) {
    const AbsMaxMinClass& sketch_class = classes[static_cast<size_t>(index)];
    absl::Status status = ValidateClass(index, sketch_class, cols - total);
    if (!status.ok()) return status;
    total += sketch_class.num_columns;
  }
  if (total != cols) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected classes of ", cols, " columns in all, found ", total));
  }
  return absl::OkStatus();
}

absl::Status ValidateAbsMaxMinColumnClasses(absl::Span<const AbsMaxMinClass> classes,
                                            absl::Span<const uint8_t> column_classes) {
  std::vector<int64_t> counts(classes.size(), 0);
  for (size_t column = 0; column < column_classes.size(); ++column) {
    if (column_classes[column] >= classes.size()) {
      return absl::InvalidArgumentError(absl::StrCat("column ", column, ": expected a class below ",
                                                     classes.size(), ", found ",
                                                     column_classes[column]));
    }
    ++counts[column_classes[column]];
  }
  for (size_t index = 0; index < classes.size(); ++index) {
    if (counts[index] != classes[index].num_columns) {
      return absl::InvalidArgumentError(absl::StrCat("class ", index, ": expected ",
                                                     classes[index].num_columns, " columns, found ",
                                                     counts[index]));
    }
  }
  return absl::OkStatus();
}

uint64_t AbsMaxMinKey(uint64_t seed, std::string_view site_name, int64_t hash_row, int64_t column) {
  return KeyOfStream(seed, HashName(site_name), hash_row, column);
}

AbsMaxMinLayout::AbsMaxMinLayout(uint64_t seed, std::string_view site_name,
                                 std::vector<AbsMaxMinClass> classes,
                                 std::vector<uint8_t> column_classes)
    : seed_(seed), classes_(std::move(classes)), column_classes_(std::move(column_classes)) {
  int64_t cols = 0;
  for (const AbsMaxMinClass& sketch_class : classes_) cols += sketch_class.num_columns;
  US_CHECK(ValidateAbsMaxMinClasses(cols, classes_).ok());
  US_CHECK(column_classes_.empty() ||
           (static_cast<int64_t>(column_classes_.size()) == cols &&
            ValidateAbsMaxMinColumnClasses(classes_, column_classes_).ok()));

  const uint64_t stream = HashName(site_name);
  struct Place {
    uint8_t column_class;
    uint64_t key;
    int32_t column;
    auto operator<=>(const Place&) const = default;  // NOLINT(modernize-use-nullptr): no 0
  };
  std::vector<Place> places;
  places.reserve(Index(cols));
  for (int64_t column = 0; column < cols; ++column) {
    const uint8_t column_class = column_classes_.empty() ? 0 : column_classes_[Index(column)];
    places.push_back(
        {column_class, KeyOfStream(seed, stream, 0, column), static_cast<int32_t>(column)});
  }
  std::sort(places.begin(), places.end());
  columns_.reserve(places.size());
  for (const Place& place : places) columns_.push_back(place.column);

  int64_t first_place = 0;
  for (const AbsMaxMinClass& sketch_class : classes_) {
    parts_.push_back({first_place, num_buckets_, static_cast<int64_t>(tables_.size())});
    AddClass(
        stream, sketch_class,
        absl::MakeConstSpan(columns_).subspan(Index(first_place), Index(sketch_class.num_columns)));
    first_place += sketch_class.num_columns;
  }
}

void AbsMaxMinLayout::AddClass(uint64_t stream, const AbsMaxMinClass& sketch_class,
                               absl::Span<const int32_t> columns) {
  const int64_t num_columns = sketch_class.num_columns;
  // (key, column) and the column's place.
  std::vector<std::pair<std::pair<uint64_t, int32_t>, int64_t>> order(columns.size());
  for (int64_t hash_row = 0; hash_row < sketch_class.hash_rows; ++hash_row) {
    for (int64_t place = 0; place < num_columns; ++place) {
      const int32_t column = columns[Index(place)];
      order[Index(place)] = {{KeyOfStream(seed_, stream, hash_row, column), column}, place};
    }
    std::sort(order.begin(), order.end());
    const size_t table = tables_.size();
    tables_.resize(table + columns.size());
    for (int64_t position = 0; position < num_columns; ++position) {
      tables_[table + Index(order[Index(position)].second)] =
          static_cast<int32_t>(num_buckets_ + position * sketch_class.buckets / num_columns);
    }
    num_buckets_ += sketch_class.buckets;
  }
  row_bits_ += sketch_class.num_bits();
}

absl::Span<const int32_t> AbsMaxMinLayout::BucketsOf(int64_t class_index, int64_t hash_row) const {
  const AbsMaxMinClass& sketch_class = classes_[Index(class_index)];
  US_CHECK(hash_row >= 0 && hash_row < sketch_class.hash_rows);
  return absl::MakeConstSpan(tables_).subspan(
      Index(parts_[Index(class_index)].table + hash_row * sketch_class.num_columns),
      Index(sketch_class.num_columns));
}

}  // namespace ultrasketch
