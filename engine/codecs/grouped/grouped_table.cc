#include "engine/codecs/grouped/grouped_table.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/codecs/grouped/grouped_cpu_linear.h"

namespace ultrasketch {
namespace {

absl::Status DataLoss(const TensorSource& source, const std::string& name,
                      const std::string& message) {
  return absl::DataLossError(
      absl::StrCat(source.Describe(name), ": tensor ", Quoted(name, 200), ": ", message));
}

// The half of an odd number of columns that no column uses.
absl::Status CheckPadding(const TensorSource& source, const std::string& name,
                          const TensorView& values) {
  const int64_t row_bytes = values.shape[1];
  for (int64_t row = 0; row < values.shape[0]; ++row) {
    if (values.data[(row + 1) * row_bytes - 1] >> 4 == 0) continue;
    return DataLoss(
        source, name,
        absl::StrCat("row ", row, ": expected zero bits after the last column, found ", "others"));
  }
  return absl::OkStatus();
}

absl::Status CheckScales(const TensorSource& source, const std::string& name,
                         const TensorView& scales) {
  US_RETURN_IF_ERROR(CheckFinite(source, name, scales));
  for (int64_t i = 0; i < scales.num_elements(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, scales.data + 2 * i, sizeof(bits));
    if (bits <= 0x8000) continue;  // at least 0, or -0
    float value = 0;
    CopyToFloat(scales, i, 1, &value);
    return DataLoss(source, name,
                    absl::StrCat("row ", i / scales.shape[1], ", group ", i % scales.shape[1],
                                 ": expected a scale of at least 0, found ", value));
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view GroupedTypeName(GroupedType type) {
  return type == GroupedType::kInt8 ? "int8" : "int4";
}

std::optional<GroupedType> GroupedTypeFromName(std::string_view name) {
  for (const GroupedType type : {GroupedType::kInt8, GroupedType::kInt4}) {
    if (name == GroupedTypeName(type)) return type;
  }
  return std::nullopt;
}

int GroupedLimit(GroupedType type) { return type == GroupedType::kInt8 ? 127 : 7; }

int64_t GroupedRowBytes(GroupedType type, int64_t cols) {
  return type == GroupedType::kInt8 ? cols : (cols + 1) / 2;
}

int64_t GroupsInRow(int64_t cols) { return (cols + kGroupColumns - 1) / kGroupColumns; }

GroupedTable::GroupedTable(LinearSite site, GroupedType type)
    : site_(std::move(site)), type_(type) {}

absl::StatusOr<std::unique_ptr<GroupedTable>> GroupedTable::Load(const LinearSite& site,
                                                                 GroupedType type,
                                                                 const TensorSource& source) {
  std::unique_ptr<GroupedTable> table(new GroupedTable(site, type));
  const std::string values_name = site.name + ".quantized";
  US_ASSIGN_OR_RETURN(
      table->values_,
      GetTensor(source, values_name, {type == GroupedType::kInt8 ? DType::kI8 : DType::kU8},
                {site.rows, GroupedRowBytes(type, site.cols)}));
  if (type == GroupedType::kInt4 && site.cols % 2 != 0) {
    US_RETURN_IF_ERROR(CheckPadding(source, values_name, table->values_));
  }
  const std::string scale_name = site.name + ".scale";
  US_ASSIGN_OR_RETURN(table->scales_, GetTensor(source, scale_name, {DType::kF16, DType::kBF16},
                                                {site.rows, GroupsInRow(site.cols)}));
  US_RETURN_IF_ERROR(CheckScales(source, scale_name, table->scales_));
  return table;
}

std::unique_ptr<GroupedTable> GroupedTable::FromParts(LinearSite site, GroupedType type,
                                                      std::vector<uint8_t> values,
                                                      std::vector<uint16_t> scales) {
  const int64_t row_bytes = GroupedRowBytes(type, site.cols);
  const int64_t groups = GroupsInRow(site.cols);
  US_CHECK(static_cast<int64_t>(values.size()) == site.rows * row_bytes);
  US_CHECK(static_cast<int64_t>(scales.size()) == site.rows * groups);
  std::unique_ptr<GroupedTable> table(new GroupedTable(std::move(site), type));
  const int64_t rows = table->site_.rows;
  table->owned_values_ = std::move(values);
  table->owned_scales_ = std::move(scales);
  table->values_ = {type == GroupedType::kInt8 ? DType::kI8 : DType::kU8,
                    {rows, row_bytes},
                    table->owned_values_.data()};
  table->scales_ = {
      DType::kBF16, {rows, groups}, reinterpret_cast<const uint8_t*>(table->owned_scales_.data())};
  return table;
}

void GroupedTable::DecodeRows(int64_t first_row, int64_t num_rows, float* out) const {
  US_CHECK(first_row >= 0 && num_rows >= 0 && first_row + num_rows <= site_.rows);
  const int64_t groups = scales_.shape[1];
  for (int64_t row = first_row; row < first_row + num_rows; ++row) {
    const uint8_t* values = values_.data + row * values_.shape[1];
    for (int64_t group = 0; group < groups; ++group) {
      float scale = 0;
      CopyToFloat(scales_, row * groups + group, 1, &scale);
      const int64_t end = std::min((group + 1) * kGroupColumns, site_.cols);
      for (int64_t column = group * kGroupColumns; column < end; ++column) {
        int value = 0;
        if (type_ == GroupedType::kInt8) {
          value = static_cast<int8_t>(values[column]);
        } else {
          const int half = values[column / 2] >> (column % 2 * 4) & 15;
          value = half < 8 ? half : half - 16;
        }
        *out++ = static_cast<float>(value) * scale;
      }
    }
  }
}

std::vector<NamedTensor> GroupedTable::StoredTensors() const {
  return {{site_.name + ".quantized", values_}, {site_.name + ".scale", scales_}};
}

std::unique_ptr<CpuLinear> GroupedTable::PackForCpu() const {
  return std::make_unique<GroupedCpuLinear>(*this);
}

}  // namespace ultrasketch
