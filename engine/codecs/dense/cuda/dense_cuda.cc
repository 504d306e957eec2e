#include <algorithm>
#include <vector>

#include "engine/base/status.h"
#include "engine/codecs/cuda/cuda_codec.h"
#include "engine/codecs/cuda/tile_layout.h"
#include "engine/codecs/dense/cuda/dense_product.h"

namespace ultrasketch::cuda {
namespace {

absl::StatusOr<PackedLinear> Pack(const EncodedLinear& encoded, absl::Span<const float> bias,
                                  WeightPacker& packer) {
  constexpr int64_t kFloatBytes = sizeof(float);
  const int64_t rows = encoded.site().rows;
  const int64_t cols = encoded.site().cols;
  const int64_t num_k_tiles = NumKTiles(cols);
  MemoryPlan plan;
  const int64_t tiles = plan.Add(NumMTiles(rows) * num_k_tiles * kDenseKTileBytes);
  const int64_t scales = plan.Add(rows * kFloatBytes);
  const int64_t biases = plan.AddCopy(bias);
  US_ASSIGN_OR_RETURN(const int64_t staged_rows, packer.StagedRows(cols * kFloatBytes));
  US_ASSIGN_OR_RETURN(uint8_t* const base, packer.Allocate(plan));

  // Some rows at a time, so that the host's copy stays small.
  constexpr int64_t kHostFloats = int64_t{4} << 20;
  const int64_t rows_at_once =
      std::clamp(kHostFloats / std::max<int64_t>(cols, 1) / kMTileRows * kMTileRows,
                 int64_t{kMTileRows}, staged_rows);
  std::vector<float> host(static_cast<size_t>(std::min(rows_at_once, rows) * cols));
  for (int64_t first = 0; first < rows; first += rows_at_once) {
    const int64_t count = std::min(rows_at_once, rows - first);
    packer.pool().ParallelFor(count, 1, [&](int64_t begin, int64_t end, int) {
      if (begin < end) encoded.DecodeRows(first + begin, end - begin, host.data() + begin * cols);
    });
    US_RETURN_IF_ERROR(packer.Upload(host.data(), count * cols * kFloatBytes, packer.staging()));
    US_RETURN_IF_ERROR(
        packer.Finish(LaunchPackDense(reinterpret_cast<const float*>(packer.staging()), cols, first,
                                      count, num_k_tiles, base + tiles,
                                      reinterpret_cast<float*>(base + scales), packer.stream()),
                      "packing dense weights"));
  }

  PackedLinear packed;
  packed.matrix.tiles = base + tiles;
  packed.matrix.row_scales = reinterpret_cast<float*>(base + scales);
  if (!bias.empty()) packed.matrix.bias = reinterpret_cast<float*>(base + biases);
  packed.matrix.rows = rows;
  packed.matrix.num_k_tiles = num_k_tiles;
  packed.transform.cols = cols;
  packed.transform.num_k_tiles = num_k_tiles;
  return packed;
}

}  // namespace

const CudaCodec kDenseCuda = {
    "dense", Pack, LaunchDenseProduct, /*can_gate=*/nullptr, /*is_fused=*/false, LaunchEmbedDense};

}  // namespace ultrasketch::cuda
