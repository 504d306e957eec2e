// Which columns of a site are folded together, and with which signs: the hash of the folding
// sketch.
//
//   sum[g] = sum over columns i of group g of sign(i) * x[i]
//   z[k]   = weight(plane of k) * sum[group of k]                  the sketch of an input
//   y[r]   = scale[r] * sum over buckets k of bit[r][k] * z[k]     bit in {-1, +1}
//
// The hash is a signed permutation of the columns cut into runs, the groups, so that it is
// balanced: every group of a class holds the same number of columns. It is a pure function of a
// 64-bit seed, the site's name and the classes. A group has one bucket for each of its class's bit
// planes: one where memory is short, several where a weight is to have more than one bit.
// engine/format/FORMAT.md documents it all to the bit.
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
inline constexpr int64_t kMaxColumnsPerGroup = 64;
inline constexpr int64_t kMaxFoldPlanes = 8;

// What the least significant of `planes` bit planes weighs, 1 to kMaxFoldPlanes: half the step of
// the uniform quantizer that suits normally distributed weights best (Max, "Quantizing for Minimum
// Distortion", 1960), in units of their mean magnitude. Each plane before it weighs twice as much,
// so that a group's weights are odd multiples of it up to 2^planes - 1.
float FoldUnit(int64_t planes);

// A set of columns that are folded alike.
struct FoldClass {
  int64_t num_columns = 0;
  int64_t columns_per_group = 1;
  int64_t planes = 1;

  int64_t num_groups() const { return num_columns / columns_per_group; }
  int64_t num_buckets() const { return num_groups() * planes; }
  friend bool operator==(const FoldClass&, const FoldClass&) = default;
};

// INVALID_ARGUMENT saying what is wrong unless there are 1 to kMaxFoldClasses classes that cover
// `cols` columns, each a positive multiple of 1 to kMaxColumnsPerGroup columns, in 1 to
// kMaxFoldPlanes planes.
absl::Status ValidateFoldClasses(int64_t cols, absl::Span<const FoldClass> classes);

// The same for the classes of the columns: `cols` numbers, each class as often as it says.
absl::Status ValidateColumnClasses(absl::Span<const FoldClass> classes,
                                   absl::Span<const uint8_t> column_classes);

// `cols` columns in exactly `buckets` buckets as even as can be: one class, or two that differ by
// one column a group, or, with more buckets than columns, by one plane. The class that gives its
// columns more comes first. `buckets` is ceil(cols / kMaxColumnsPerGroup) to kMaxFoldPlanes * cols.
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
  int64_t cols() const { return static_cast<int64_t>(group_of_column_.size()); }
  int64_t groups() const { return groups_; }
  int64_t buckets() const { return buckets_; }

  // Groups are numbered class by class, in this order. So are buckets; within a class they are
  // numbered plane by plane, the most significant first, and within a plane by group.
  const std::vector<FoldClass>& classes() const { return classes_; }
  // [cols], or empty.
  const std::vector<uint8_t>& column_classes() const { return column_classes_; }

  const std::vector<int32_t>& group_of_column() const { return group_of_column_; }
  const std::vector<float>& sign_of_column() const { return sign_of_column_; }  // +1 or -1
  // The columns group by group; which columns a group holds follows from the classes.
  const std::vector<int32_t>& columns_by_group() const { return columns_by_group_; }
  absl::Span<const int32_t> ColumnsOf(int64_t group) const;

  // The sketch: x [cols] to z [buckets]. The columns of a group are added in their order in
  // columns_by_group.
  void Fold(const float* x, float* z) const;

 private:
  uint64_t seed_;
  int64_t groups_ = 0;
  int64_t buckets_ = 0;
  std::vector<FoldClass> classes_;
  std::vector<uint8_t> column_classes_;
  std::vector<int32_t> group_of_column_;
  std::vector<float> sign_of_column_;
  std::vector<int32_t> columns_by_group_;
  std::vector<float> signs_by_group_;  // parallel to columns_by_group_
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_LAYOUT_H_
