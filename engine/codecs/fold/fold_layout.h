// Which columns of a site share a bucket, and with which signs: the hash of the folding sketch.
//
//   z[k] = sum over columns i with bucket(i) = k of sign(i) * x[i]      the sketch of an input
//   y[r] = scale[r] * sum over k of bit[r][k] * z[k]                    bit in {-1, +1}
//
// The hash is a signed permutation of the columns cut into runs, so that it is balanced: every
// bucket of a class holds the same number of columns. It is a pure function of a 64-bit seed, the
// site's name and the classes. engine/format/FORMAT.md documents it to the bit.
//
// Source: the count sketch (Charikar, Chen, Farach-Colton 2002) as a hash of weights (Chen et al.,
// "Compressing Neural Networks with the Hashing Trick", ICML 2015), with one bit a bucket.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_LAYOUT_H_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_LAYOUT_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace ultrasketch {

inline constexpr int64_t kMaxFoldClasses = 256;

// Bounds what a decoder allocates by the size of the stored bits, whatever a file claims.
inline constexpr int64_t kMaxColumnsPerBucket = 64;

// A set of columns that are folded alike, in num_columns / columns_per_bucket buckets.
struct FoldClass {
  int64_t num_columns = 0;
  int64_t columns_per_bucket = 1;

  int64_t num_buckets() const { return num_columns / columns_per_bucket; }
  friend bool operator==(const FoldClass&, const FoldClass&) = default;
};

// INVALID_ARGUMENT saying what is wrong unless there are 1 to kMaxFoldClasses classes that cover
// `cols` columns, each a positive multiple of 1 to kMaxColumnsPerBucket columns.
absl::Status ValidateFoldClasses(int64_t cols, absl::Span<const FoldClass> classes);

// The same for the classes of the columns: `cols` numbers, each class as often as it says.
absl::Status ValidateColumnClasses(absl::Span<const FoldClass> classes,
                                   absl::Span<const uint8_t> column_classes);

// `cols` columns in exactly `buckets` buckets as even as can be: one class, or two that differ by
// one column a bucket. `buckets` is at least ceil(cols / kMaxColumnsPerBucket), at most `cols`.
std::vector<FoldClass> EvenFoldClasses(int64_t cols, int64_t buckets);

// Two random numbers of a column: its place in the permutation and its sign.
struct FoldHash {
  uint64_t key;   // columns are permuted by ascending key
  bool negative;  // the sign is -1
};
FoldHash HashColumn(uint64_t seed, std::string_view site_name, int64_t column);

// Immutable.
class FoldLayout {
 public:
  // Valid classes (as above). `column_classes` is empty when the hash is to deal the columns to the
  // classes.
  FoldLayout(uint64_t seed, std::string_view site_name, std::vector<FoldClass> classes,
             std::vector<uint8_t> column_classes);

  uint64_t seed() const { return seed_; }
  int64_t cols() const { return static_cast<int64_t>(bucket_of_column_.size()); }
  int64_t buckets() const { return buckets_; }

  // Buckets are numbered class by class, in this order.
  const std::vector<FoldClass>& classes() const { return classes_; }
  // [cols], or empty.
  const std::vector<uint8_t>& column_classes() const { return column_classes_; }

  const std::vector<int32_t>& bucket_of_column() const { return bucket_of_column_; }
  const std::vector<float>& sign_of_column() const { return sign_of_column_; }  // +1 or -1
  // The columns bucket by bucket; which columns a bucket holds follows from the classes.
  const std::vector<int32_t>& columns_by_bucket() const { return columns_by_bucket_; }

  // The sketch: x [cols] to z [buckets]. The columns of a bucket are added in their order in
  // columns_by_bucket.
  void Fold(const float* x, float* z) const;

 private:
  uint64_t seed_;
  int64_t buckets_ = 0;
  std::vector<FoldClass> classes_;
  std::vector<uint8_t> column_classes_;
  std::vector<int32_t> bucket_of_column_;
  std::vector<float> sign_of_column_;
  std::vector<int32_t> columns_by_bucket_;
  std::vector<float> signs_by_bucket_;  // parallel to columns_by_bucket_
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_LAYOUT_H_
