#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/codecs/cuda/cuda_codec.h"
#include "engine/codecs/fold/cuda/bit_layout.h"
#include "engine/codecs/fold/cuda/fold_product.h"
#include "engine/codecs/fold/cuda/fold_transform.h"
#include "engine/codecs/fold/fold_linear.h"

namespace ultrasketch::cuda {
namespace {

absl::StatusOr<PackedLinear> Pack(const EncodedLinear& encoded, absl::Span<const float> bias,
                                  WeightPacker& packer) {
  const auto& fold = static_cast<const FoldLinear&>(encoded);
  if (fold.layout().buckets() > kMaxBuckets) {
    return absl::UnimplementedError(absl::StrCat("expected at most ", kMaxBuckets,
                                                 " buckets, found ", fold.layout().buckets()));
  }
  const TransformTables tables = MakeFoldTransform(fold.layout());
  const std::vector<float> row_scales = fold.Scales();
  const int64_t rows = fold.site().rows;
  const int64_t num_k_tiles = FoldKTiles(fold.layout().buckets());

  MemoryPlan plan;
  const int64_t tiles = plan.Add(NumMTiles(rows) * num_k_tiles * kFoldKTileBytes);
  const int64_t scales = plan.AddCopy(row_scales);
  const int64_t biases = plan.AddCopy(bias);
  const int64_t scatter_indices = plan.AddCopy(tables.scatter_indices);
  const int64_t groups = plan.AddCopy(tables.groups);
  US_ASSIGN_OR_RETURN(const int64_t staged_rows, packer.StagedRows(fold.row_bytes()));
  US_ASSIGN_OR_RETURN(uint8_t* const base, packer.Allocate(plan));
  for (int64_t first = 0; first < rows; first += staged_rows) {
    const int64_t count = std::min(staged_rows, rows - first);
    US_RETURN_IF_ERROR(packer.Upload(fold.bits() + first * fold.row_bytes(),
                                     count * fold.row_bytes(), packer.staging()));
    US_RETURN_IF_ERROR(
        packer.Finish(LaunchPackFold(packer.staging(), fold.row_bytes(), first, count, num_k_tiles,
                                     base + tiles, packer.stream()),
                      "packing folded weights"));
  }

  PackedLinear packed;
  packed.matrix.tiles = base + tiles;
  packed.matrix.row_scales = reinterpret_cast<float*>(base + scales);
  if (!bias.empty()) packed.matrix.bias = reinterpret_cast<float*>(base + biases);
  packed.matrix.rows = rows;
  packed.matrix.num_k_tiles = num_k_tiles;
  packed.transform = tables.At(base + groups, base + scatter_indices, fold.layout().cols(),
                               num_k_tiles, InputForm::kHiLoInt8);
  return packed;
}

}  // namespace

const CudaCodec kFoldCuda = {"fold", Pack, LaunchFoldProduct, CanGateFoldProduct,
                             /*is_fused=*/true};

}  // namespace ultrasketch::cuda
