#include <algorithm>
#include <vector>

#include "engine/base/status.h"
#include "engine/codecs/absmaxmin/absmaxmin_linear.h"
#include "engine/codecs/absmaxmin/cuda/absmaxmin_tables.h"
#include "engine/codecs/cuda/cuda_codec.h"

namespace ultrasketch::cuda {
namespace {

absl::StatusOr<PackedLinear> Pack(const EncodedLinear& encoded, absl::Span<const float> bias,
                                  WeightPacker& packer) {
  const auto& sketch = static_cast<const AbsMaxMinLinear&>(encoded);
  const AbsMaxMinTables tables = MakeAbsMaxMinTables(sketch.layout());
  const std::vector<float> row_scales = sketch.Scales();
  const int64_t rows = sketch.site().rows;
  const int64_t row_codes = sketch.layout().num_buckets();
  const int64_t num_blocks = (rows + kBucketBlockRows - 1) / kBucketBlockRows;

  MemoryPlan plan;
  const int64_t words =
      plan.Add(num_blocks * tables.words_per_block * static_cast<int64_t>(sizeof(uint32_t)));
  const int64_t scales = plan.AddCopy(row_scales);
  const int64_t biases = plan.AddCopy(bias);
  const int64_t parts = plan.AddCopy(tables.parts);
  const int64_t entries = plan.AddCopy(tables.entries);
  const int64_t scatter_indices = plan.AddCopy(tables.transform.scatter_indices);
  const int64_t groups = plan.AddCopy(tables.transform.groups);
  // Whole blocks of rows.
  constexpr int64_t kTilesPerBlock = kBucketBlockRows / kMTileRows;
  US_ASSIGN_OR_RETURN(const int64_t staged_pairs, packer.StagedRows(kTilesPerBlock * row_codes));
  US_ASSIGN_OR_RETURN(uint8_t* const base, packer.Allocate(plan));

  // Some rows at a time, so that the host's copy stays small.
  constexpr int64_t kHostBytes = int64_t{16} << 20;
  const int64_t rows_at_once =
      std::clamp(kHostBytes / row_codes / kBucketBlockRows * kBucketBlockRows,
                 int64_t{kBucketBlockRows}, kTilesPerBlock * staged_pairs);
  std::vector<int8_t> codes(static_cast<size_t>(std::min(rows_at_once, rows) * row_codes));
  for (int64_t first = 0; first < rows; first += rows_at_once) {
    const int64_t count = std::min(rows_at_once, rows - first);
    packer.pool().ParallelFor(count, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        sketch.UnpackRow(first + row, codes.data() + row * row_codes);
      }
    });
    US_RETURN_IF_ERROR(packer.Upload(codes.data(), count * row_codes, packer.staging()));
    for (size_t index = 0; index < tables.parts.size(); ++index) {
      US_RETURN_IF_ERROR(packer.Finish(
          LaunchPackAbsMaxMin(reinterpret_cast<const int8_t*>(packer.staging()), row_codes,
                              tables.first_codes[index], tables.parts[index], first, count,
                              tables.words_per_block, reinterpret_cast<uint32_t*>(base + words),
                              packer.stream()),
          "packing sketched weights"));
    }
  }

  PackedLinear packed;
  packed.matrix.tiles = base + words;
  packed.matrix.row_scales = reinterpret_cast<float*>(base + scales);
  if (!bias.empty()) packed.matrix.bias = reinterpret_cast<float*>(base + biases);
  packed.matrix.rows = rows;
  packed.matrix.num_k_tiles = tables.num_k_tiles;
  packed.matrix.buckets = {base + parts, reinterpret_cast<const uint16_t*>(base + entries),
                           static_cast<int>(tables.parts.size()), tables.entry_words,
                           tables.words_per_block};
  packed.transform = tables.transform.At(base + groups, base + scatter_indices, sketch.site().cols,
                                         tables.num_k_tiles, InputForm::kFp16);
  return packed;
}

}  // namespace

const CudaCodec kAbsMaxMinCuda = {"absmaxmin", Pack, LaunchAbsMaxMinProduct};

}  // namespace ultrasketch::cuda
