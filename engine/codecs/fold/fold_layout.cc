#include "engine/codecs/fold/fold_layout.h"

#include <algorithm>
#include <limits>
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

FoldHash HashColumnOfStream(uint64_t seed, uint64_t stream, uint64_t column) {
  const auto words =
      Philox4x32({static_cast<uint32_t>(column), static_cast<uint32_t>(column >> 32),
                  static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return {uint64_t{words[1]} << 32 | words[0], (words[2] & 1) != 0};
}

}  // namespace

float FoldUnit(int64_t planes) {
  US_CHECK(planes >= 1 && planes <= kMaxFoldPlanes);
  // Few binary digits, so that a decoded weight is rounded once.
  constexpr float kUnits[kMaxFoldPlanes] = {1.0f,        5.0f / 8,     47.0f / 128,  27.0f / 128,
                                            15.0f / 128, 67.0f / 1024, 73.0f / 2048, 79.0f / 4096};
  return kUnits[planes - 1];
}

absl::Status ValidateFoldClasses(int64_t cols, absl::Span<const FoldClass> classes) {
  const auto num_classes = static_cast<int64_t>(classes.size());
  if (num_classes < 1 || num_classes > kMaxFoldClasses) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected 1 to ", kMaxFoldClasses, " classes, found ", num_classes));
  }
  if (cols > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected fewer than 2^31 columns, found ", cols));
  }
  int64_t total = 0;
  for (int64_t index = 0; index < num_classes; ++index) {
    const FoldClass& fold_class = classes[static_cast<size_t>(index)];
    const int64_t width = fold_class.columns_per_group;
    if (width < 1 || width > kMaxColumnsPerGroup) {
      return absl::InvalidArgumentError(absl::StrCat("class ", index, ": expected 1 to ",
                                                     kMaxColumnsPerGroup,
                                                     " columns a group, found ", width));
    }
    if (fold_class.planes < 1 || fold_class.planes > kMaxFoldPlanes) {
      return absl::InvalidArgumentError(absl::StrCat("class ", index, ": expected 1 to ",
                                                     kMaxFoldPlanes, " bit planes, found ",
                                                     fold_class.planes));
    }
    if (fold_class.num_columns < 1 || fold_class.num_columns > cols - total) {
      return absl::InvalidArgumentError(absl::StrCat("class ", index, ": expected 1 to ",
                                                     cols - total, " of the ", cols,
                                                     " columns, found ", fold_class.num_columns));
    }
    if (fold_class.num_columns % width != 0) {
      return absl::InvalidArgumentError(absl::StrCat("class ", index, ": expected a multiple of ",
                                                     width, " columns, found ",
                                                     fold_class.num_columns));
    }
    total += fold_class.num_columns;
  }
  if (total != cols) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected classes of ", cols, " columns in all, found ", total));
  }
  return absl::OkStatus();
}

absl::Status ValidateColumnClasses(absl::Span<const FoldClass> classes,
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

std::vector<FoldClass> EvenFoldClasses(int64_t cols, int64_t buckets) {
  US_CHECK(buckets >= 1 && buckets <= cols * kMaxFoldPlanes &&
           cols <= buckets * kMaxColumnsPerGroup);
  if (buckets > cols) {
    const int64_t planes = buckets / cols;
    const int64_t num_finer = buckets % cols;
    if (num_finer == 0) return {{cols, 1, planes}};
    return {{num_finer, 1, planes + 1}, {cols - num_finer, 1, planes}};
  }
  const int64_t width = cols / buckets;
  const int64_t num_wide = cols % buckets;
  std::vector<FoldClass> classes = {{(buckets - num_wide) * width, width, 1}};
  if (num_wide > 0) classes.push_back({num_wide * (width + 1), width + 1, 1});
  return classes;
}

FoldHash HashColumn(uint64_t seed, std::string_view site_name, int64_t column) {
  return HashColumnOfStream(seed, HashName(site_name), static_cast<uint64_t>(column));
}

FoldLayout::FoldLayout(uint64_t seed, std::string_view site_name, std::vector<FoldClass> classes,
                       std::vector<uint8_t> column_classes)
    : seed_(seed), classes_(std::move(classes)), column_classes_(std::move(column_classes)) {
  int64_t cols = 0;
  for (const FoldClass& fold_class : classes_) cols += fold_class.num_columns;
  US_CHECK(ValidateFoldClasses(cols, classes_).ok());
  US_CHECK(column_classes_.empty() || (static_cast<int64_t>(column_classes_.size()) == cols &&
                                       ValidateColumnClasses(classes_, column_classes_).ok()));

  const uint64_t stream = HashName(site_name);
  struct Place {
    uint8_t column_class;
    uint64_t key;
    int32_t column;
    auto operator<=>(const Place&) const = default;  // NOLINT(modernize-use-nullptr): no 0
  };
  std::vector<Place> places;
  places.reserve(static_cast<size_t>(cols));
  sign_of_column_.reserve(static_cast<size_t>(cols));
  for (int64_t column = 0; column < cols; ++column) {
    const FoldHash hash = HashColumnOfStream(seed, stream, static_cast<uint64_t>(column));
    const uint8_t column_class =
        column_classes_.empty() ? 0 : column_classes_[static_cast<size_t>(column)];
    places.push_back({column_class, hash.key, static_cast<int32_t>(column)});
    sign_of_column_.push_back(hash.negative ? -1.0f : 1.0f);
  }
  std::sort(places.begin(), places.end());

  group_of_column_.resize(static_cast<size_t>(cols));
  size_t place = 0;
  for (const FoldClass& fold_class : classes_) {
    for (int64_t index = 0; index < fold_class.num_columns; ++index, ++place) {
      const int32_t column = places[place].column;
      group_of_column_[static_cast<size_t>(column)] =
          static_cast<int32_t>(groups_ + index / fold_class.columns_per_group);
      columns_by_group_.push_back(column);
      signs_by_group_.push_back(sign_of_column_[static_cast<size_t>(column)]);
    }
    groups_ += fold_class.num_groups();
    buckets_ += fold_class.num_buckets();
  }
}

absl::Span<const int32_t> FoldLayout::ColumnsOf(int64_t group) const {
  US_CHECK(group >= 0 && group < groups_);
  int64_t first_column = 0;
  for (const FoldClass& fold_class : classes_) {
    const int64_t width = fold_class.columns_per_group;
    if (group < fold_class.num_groups()) {
      return absl::MakeConstSpan(columns_by_group_)
          .subspan(static_cast<size_t>(first_column + group * width), static_cast<size_t>(width));
    }
    group -= fold_class.num_groups();
    first_column += fold_class.num_columns;
  }
  return {};
}

void FoldLayout::Fold(const float* x, float* z) const {
  const int32_t* column = columns_by_group_.data();
  const float* sign = signs_by_group_.data();
  for (const FoldClass& fold_class : classes_) {
    const int64_t width = fold_class.columns_per_group;
    const int64_t num_groups = fold_class.num_groups();
    float* least = z + (fold_class.planes - 1) * num_groups;
    const float unit = FoldUnit(fold_class.planes);
    for (int64_t group = 0; group < num_groups; ++group) {
      float sum = 0.0f;
      for (int64_t i = 0; i < width; ++i) sum += sign[i] * x[column[i]];
      least[group] = unit * sum;
      column += width;
      sign += width;
    }
    for (float* plane = least; plane != z; plane -= num_groups) {
      for (int64_t group = 0; group < num_groups; ++group) {
        plane[group - num_groups] = 2 * plane[group];
      }
    }
    z += fold_class.num_buckets();
  }
}

}  // namespace ultrasketch
