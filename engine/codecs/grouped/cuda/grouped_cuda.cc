#include <algorithm>

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/codecs/cuda/cuda_codec.h"
#include "engine/codecs/grouped/cuda/grouped_product.h"
#include "engine/codecs/grouped/grouped_table.h"

namespace ultrasketch::cuda {
namespace {

absl::StatusOr<PackedLinear> Pack(const EncodedLinear& encoded, absl::Span<const float> bias,
                                  WeightPacker& packer) {
  static_assert(kGroupColumns == kKTileColumns);
  US_CHECK(bias.empty());  // tables have none
  const auto& table = static_cast<const GroupedTable&>(encoded);
  const bool is_int4 = table.type() == GroupedType::kInt4;
  const int64_t rows = table.site().rows;
  const int64_t cols = table.site().cols;
  const int64_t num_k_tiles = NumGroupedKTiles(cols);
  const int64_t row_bytes = table.values().shape[1];
  const int64_t row_scale_bytes = GroupsInRow(cols) * static_cast<int64_t>(sizeof(uint16_t));
  MemoryPlan plan;
  const int64_t tiles = plan.Add(NumMTiles(rows) * num_k_tiles * GroupedKTileBytes(is_int4));
  US_ASSIGN_OR_RETURN(const int64_t staged_rows, packer.StagedRows(row_bytes + row_scale_bytes));
  US_ASSIGN_OR_RETURN(uint8_t* const base, packer.Allocate(plan));
  for (int64_t first = 0; first < rows; first += staged_rows) {
    const int64_t count = std::min(staged_rows, rows - first);
    uint8_t* const staged_values = packer.staging() + count * row_scale_bytes;
    US_RETURN_IF_ERROR(packer.Upload(table.scales().data + first * row_scale_bytes,
                                     count * row_scale_bytes, packer.staging()));
    US_RETURN_IF_ERROR(
        packer.Upload(table.values().data + first * row_bytes, count * row_bytes, staged_values));
    US_RETURN_IF_ERROR(
        packer.Finish(LaunchPackGrouped(is_int4, staged_values, cols,
                                        reinterpret_cast<const uint16_t*>(packer.staging()), first,
                                        count, num_k_tiles, base + tiles, packer.stream()),
                      "packing a table"));
  }
  PackedLinear packed;
  packed.matrix.tiles = base + tiles;
  packed.matrix.rows = rows;
  packed.matrix.num_k_tiles = num_k_tiles;
  packed.matrix.has_half_scales = table.scales().dtype == DType::kF16;
  packed.transform.cols = cols;
  packed.transform.num_k_tiles = num_k_tiles;
  packed.transform.form = InputForm::kHiLoInt8;
  return packed;
}

}  // namespace

const CudaCodec kInt8Cuda = {
    "int8", Pack, LaunchInt8Product, /*can_gate=*/nullptr, /*is_fused=*/false, LaunchEmbedInt8};
const CudaCodec kInt4Cuda = {
    "int4", Pack, LaunchInt4Product, /*can_gate=*/nullptr, /*is_fused=*/false, LaunchEmbedInt4};

}  // namespace ultrasketch::cuda
