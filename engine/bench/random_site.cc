#include "engine/bench/random_site.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "engine/bench/step_parts.h"
#include "engine/codecs/absmaxmin/absmaxmin_linear.h"
#include "engine/codecs/fold/fold_linear.h"
#include "engine/codecs/grouped/grouped_table.h"

namespace ultrasketch {
namespace {

constexpr int64_t kHashRows = 3;
constexpr int64_t kBucketBits = 2;

template <typename T>
std::vector<T> RandomNumbers(int64_t count) {
  const int64_t num_bytes = count * static_cast<int64_t>(sizeof(T));
  const std::vector<uint64_t> words = RandomWords(num_bytes, 88172645463325252u);
  const auto* values = reinterpret_cast<const T*>(words.data());
  return std::vector<T>(values, values + count);
}

std::unique_ptr<EncodedLinear> RandomFold(const LinearSite& site, double row_bits) {
  const int64_t buckets = std::clamp<int64_t>(std::llround(row_bits), 1, site.cols);
  FoldLayout layout(1, site.name, EvenFoldClasses(site.cols, buckets), {});
  const int64_t row_bytes = (layout.buckets() + 7) / 8;
  std::vector<uint8_t> bits = RandomNumbers<uint8_t>(site.rows * row_bytes);
  return FoldLinear::FromParts(site, std::move(layout), std::move(bits),
                               std::vector<float>(static_cast<size_t>(site.rows), 0x1p-6f));
}

std::unique_ptr<EncodedLinear> RandomAbsMaxMin(const LinearSite& site, double row_bits) {
  const int64_t fewest = (site.cols + kMaxColumnsPerBucket - 1) / kMaxColumnsPerBucket;
  const auto wanted = static_cast<int64_t>(row_bits / (kHashRows * kBucketBits));
  AbsMaxMinLayout layout(
      1, site.name, {{site.cols, std::clamp(wanted, fewest, site.cols), kHashRows, kBucketBits, 0}},
      {});
  std::vector<int8_t> levels = RandomNumbers<int8_t>(site.rows * layout.num_buckets());
  for (int8_t& level : levels) level = static_cast<int8_t>((level & 3) - 2);
  return AbsMaxMinLinear::FromParts(site, std::move(layout), levels,
                                    std::vector<float>(static_cast<size_t>(site.rows), 0x1p-6f));
}

std::unique_ptr<EncodedLinear> RandomGrouped(const LinearSite& site, GroupedType type) {
  return GroupedTable::FromParts(
      site, type, RandomNumbers<uint8_t>(site.rows * GroupedRowBytes(type, site.cols)),
      std::vector<uint16_t>(static_cast<size_t>(site.rows * GroupsInRow(site.cols)),
                            FloatToBf16(0x1p-11f)));
}

}  // namespace

RandomSite::RandomSite(const LinearSite& site, std::string_view codec, double bits_per_weight) {
  const double row_bits = static_cast<double>(site.cols) * bits_per_weight;
  if (codec == "fold") {
    encoded_ = RandomFold(site, row_bits);
  } else if (codec == "absmaxmin") {
    encoded_ = RandomAbsMaxMin(site, row_bits);
  } else if (const std::optional<GroupedType> type = GroupedTypeFromName(codec)) {
    encoded_ = RandomGrouped(site, *type);
  } else {
    values_ = RandomBf16(site.num_weights(), 0x1p-6f);
    encoded_ = DenseSite(site, values_.data());
  }
}

}  // namespace ultrasketch
