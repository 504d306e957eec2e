// A table of integers with a scale for each group of columns: the form of a compressed model's
// token embedding and output head. FORMAT.md, "Embedding and output head", has the layout.
#ifndef ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_TABLE_H_
#define ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_TABLE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/codecs/codec.h"

namespace ultrasketch {

// Columns that share a scale; the last group of a row may have fewer.
inline constexpr int64_t kGroupColumns = 64;

enum class GroupedType : uint8_t {
  kInt8,  // one byte each
  kInt4,  // two to a byte, the even column in the low half, both in two's complement
};

// "int8", "int4".
std::string_view GroupedTypeName(GroupedType type);
std::optional<GroupedType> GroupedTypeFromName(std::string_view name);

// The integers that rounding uses are -GroupedLimit to GroupedLimit: 127 or 7.
int GroupedLimit(GroupedType type);

int64_t GroupedRowBytes(GroupedType type, int64_t cols);
int64_t GroupsInRow(int64_t cols);

// Table [rows, cols]: row r, column i is integer[r][i] * scale[r][i / 64], which a float holds
// exactly. Immutable, thread-safe.
class GroupedTable final : public EncodedLinear {
 public:
  // Stored tensors: "<name>.quantized" (int8: I8 [rows, cols]; int4: U8 [rows, ceil(cols / 2)]) and
  // "<name>.scale" (F16 or BF16 [rows, groups], finite, at least 0). NOT_FOUND and DATA_LOSS as
  // Codec::Load says. `source` must outlive the result.
  static absl::StatusOr<std::unique_ptr<GroupedTable>> Load(const LinearSite& site,
                                                            GroupedType type,
                                                            const TensorSource& source);

  // Owns what it is made of: `values` [rows][GroupedRowBytes], `scales` [rows][groups] as bfloat16.
  static std::unique_ptr<GroupedTable> FromParts(LinearSite site, GroupedType type,
                                                 std::vector<uint8_t> values,
                                                 std::vector<uint16_t> scales);

  const LinearSite& site() const override { return site_; }
  GroupedType type() const { return type_; }
  std::string_view codec_name() const override { return GroupedTypeName(type_); }
  void DecodeRows(int64_t first_row, int64_t num_rows, float* out) const override;
  std::vector<NamedTensor> StoredTensors() const override;
  // A copy: does not refer to the table.
  std::unique_ptr<CpuLinear> PackForCpu() const override;

  const TensorView& values() const { return values_; }
  const TensorView& scales() const { return scales_; }

 private:
  GroupedTable(LinearSite site, GroupedType type);

  LinearSite site_;
  GroupedType type_;
  TensorView values_;
  TensorView scales_;
  std::vector<uint8_t> owned_values_;  // empty when they are the source's
  std::vector<uint16_t> owned_scales_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_TABLE_H_
