// Which buckets a site's columns are hashed to: the hash of the AbsMaxMin sketch.
//
// The columns are dealt to classes. Within a class each of `hash_rows` hash rows deals its columns
// to `buckets` buckets: by a hashed permutation of the columns cut into runs, so that it is
// balanced: the buckets of a hash row hold equally many columns, or one more. All rows of a site
// share this hash, a pure function of a 64-bit seed, the site's name and the classes.
// engine/format/FORMAT.md documents it to the bit.
//
// Source: Zou et al., "Saliency-Driven Sketching for Ultra-Low Bit LLM Compression"
// (arXiv 2506.17255): the sketch, and more space for more important weights. There the hash rows
// are independent draws for each weight.
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_LAYOUT_H_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_LAYOUT_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace ultrasketch {

inline constexpr int64_t kMaxAbsMaxMinClasses = 16;
inline constexpr int64_t kMaxHashRows = 8;
inline constexpr int64_t kMinBucketBits = 2;
inline constexpr int64_t kMaxBucketBits = 8;
inline constexpr int64_t kMaxUnitExponent = 15;

// Bounds what a decoder allocates by the size of the stored sketch, whatever a file claims.
inline constexpr int64_t kMaxColumnsPerBucket = 256;

// A set of columns that share buckets among themselves, and with no others.
struct AbsMaxMinClass {
  int64_t num_columns = 0;
  int64_t buckets = 0;        // of a hash row; as many as columns: each has one of its own
  int64_t hash_rows = 1;      // 1 to kMaxHashRows
  int64_t bits = 2;           // of a bucket, kMinBucketBits to kMaxBucketBits
  int64_t unit_exponent = 0;  // a bucket's level weighs 2^unit_exponent steps

  int64_t num_buckets() const { return buckets * hash_rows; }
  int64_t num_bits() const { return num_buckets() * bits; }
  float unit() const { return static_cast<float>(int64_t{1} << unit_exponent); }
  int64_t least_level() const { return -(int64_t{1} << (bits - 1)); }
  int64_t largest_level() const { return (int64_t{1} << (bits - 1)) - 1; }
  friend bool operator==(const AbsMaxMinClass&, const AbsMaxMinClass&) = default;
};

// INVALID_ARGUMENT saying what is wrong unless there are 1 to kMaxAbsMaxMinClasses classes that
// cover `cols` columns, each with 1 to as many buckets a hash row as it has columns, at most
// kMaxColumnsPerBucket columns to a bucket, and the rest in the ranges above.
absl::Status ValidateAbsMaxMinClasses(int64_t cols, absl::Span<const AbsMaxMinClass> classes);

// The same for the classes of the columns: `cols` numbers, each class as often as it says.
absl::Status ValidateAbsMaxMinColumnClasses(absl::Span<const AbsMaxMinClass> classes,
                                            absl::Span<const uint8_t> column_classes);

// A column's place in the permutation of a hash row: columns are permuted by ascending key.
uint64_t AbsMaxMinKey(uint64_t seed, std::string_view site_name, int64_t hash_row, int64_t column);

// Immutable.
class AbsMaxMinLayout {
 public:
  // Valid classes (as above). `column_classes` is empty when the hash is to deal the columns to the
  // classes.
  AbsMaxMinLayout(uint64_t seed, std::string_view site_name, std::vector<AbsMaxMinClass> classes,
                  std::vector<uint8_t> column_classes);

  uint64_t seed() const { return seed_; }
  int64_t cols() const { return static_cast<int64_t>(columns_.size()); }

  const std::vector<AbsMaxMinClass>& classes() const { return classes_; }
  int64_t num_classes() const { return static_cast<int64_t>(classes_.size()); }
  // [cols], or empty.
  const std::vector<uint8_t>& column_classes() const { return column_classes_; }

  // Buckets of one output row, numbered class by class, within a class hash row by hash row.
  int64_t num_buckets() const { return num_buckets_; }
  int64_t FirstBucketOf(int64_t class_index) const { return parts_[Index(class_index)].bucket; }

  // Bits and whole bytes of the buckets of one output row.
  int64_t row_bits() const { return row_bits_; }
  int64_t row_bytes() const { return (row_bits_ + 7) / 8; }

  // The columns in the order of places: class by class, within a class as the permutation of hash
  // row 0 has them.
  const std::vector<int32_t>& columns() const { return columns_; }
  int64_t FirstPlaceOf(int64_t class_index) const { return parts_[Index(class_index)].place; }

  // For each place of a class, its column's bucket in a hash row, as numbered above.
  absl::Span<const int32_t> BucketsOf(int64_t class_index, int64_t hash_row) const;

 private:
  // Where a class begins.
  struct Part {
    int64_t place = 0;
    int64_t bucket = 0;
    int64_t table = 0;  // in tables_
  };

  static size_t Index(int64_t index) { return static_cast<size_t>(index); }

  // Appends a class whose columns are given, in the order of places, to the tables.
  void AddClass(uint64_t stream, const AbsMaxMinClass& sketch_class,
                absl::Span<const int32_t> columns);

  uint64_t seed_;
  int64_t num_buckets_ = 0;
  int64_t row_bits_ = 0;
  std::vector<AbsMaxMinClass> classes_;
  std::vector<uint8_t> column_classes_;
  std::vector<Part> parts_;
  std::vector<int32_t> columns_;
  std::vector<int32_t> tables_;  // class by class, [hash_rows, num_columns]
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_LAYOUT_H_
