#include "engine/backends/cuda/cuda_weights.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"

#include "engine/backends/cuda/kernels.h"
#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/codecs/absmaxmin/absmaxmin_linear.h"
#include "engine/codecs/absmaxmin/cuda/absmaxmin_tables.h"
#include "engine/codecs/cuda/tile_layout.h"
#include "engine/codecs/fold/cuda/bit_layout.h"
#include "engine/codecs/fold/cuda/fold_transform.h"
#include "engine/codecs/fold/fold_linear.h"
#include "engine/codecs/grouped/cuda/grouped_product.h"

namespace ultrasketch::cuda {
namespace {

constexpr int64_t kAlignment = 256;

// Holds 16 rows of floats of as many columns as a block can hold, several times.
constexpr int64_t kStagingBytes = int64_t{16} << 20;

// Parts of one allocation, each aligned.
class MemoryPlan {
 public:
  // Offset of a part of this size.
  int64_t Add(int64_t num_bytes) {
    const int64_t offset = total_bytes_;
    total_bytes_ += (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  }
  int64_t total_bytes() const { return total_bytes_; }

 private:
  int64_t total_bytes_ = 0;
};

constexpr ProductKernels kFoldKernels = {LaunchFoldProduct, CanGateFoldProduct, /*is_fused=*/true};
constexpr ProductKernels kAbsMaxMinKernels = {LaunchAbsMaxMinProduct};
constexpr ProductKernels kDenseKernels = {LaunchDenseProduct};
constexpr ProductKernels kInt8Kernels = {LaunchInt8Product};
constexpr ProductKernels kInt4Kernels = {LaunchInt4Product};

int64_t FloatBytes(int64_t count) { return count * static_cast<int64_t>(sizeof(float)); }

}  // namespace

absl::Status WeightLoader::CheckColumns(int64_t cols) const {
  const int64_t most = MaxInputColumns(device_.max_shared_bytes());
  if (cols <= most) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("expected at most ", most, " columns on ", device_.name(), ", found ", cols));
}

void WeightLoader::FreeStaging() {
  if (staging_.num_bytes() > 0) staging_ = CudaMemory();
}

absl::StatusOr<int64_t> WeightLoader::StagedRows(int64_t row_bytes) {
  if (staging_.num_bytes() == 0) {
    US_ASSIGN_OR_RETURN(staging_, CudaMemory::Allocate(device_, kStagingBytes));
  }
  const int64_t rows = staging_.num_bytes() / row_bytes / kMTileRows * kMTileRows;
  if (rows > 0) return rows;
  return absl::UnimplementedError(absl::StrCat(
      "expected rows of at most ", staging_.num_bytes() / kMTileRows, " bytes, found ", row_bytes));
}

absl::StatusOr<std::unique_ptr<CudaLinear>> WeightLoader::LoadLinear(const EncodedLinear& encoded,
                                                                     absl::Span<const float> bias) {
  const LinearSite& site = encoded.site();
  US_CHECK(bias.empty() || static_cast<int64_t>(bias.size()) == site.rows);
  // The registry.
  struct CudaCodec {
    std::string_view name;
    absl::StatusOr<std::unique_ptr<CudaLinear>> (WeightLoader::*load)(const EncodedLinear& encoded,
                                                                      absl::Span<const float> bias);
  };
  static constexpr CudaCodec kCodecs[] = {{"dense", &WeightLoader::LoadDenseSite},
                                          {"fold", &WeightLoader::LoadFold},
                                          {"absmaxmin", &WeightLoader::LoadAbsMaxMin}};
  const auto* const codec =
      std::find_if(std::begin(kCodecs), std::end(kCodecs),
                   [&](const CudaCodec& known) { return known.name == encoded.codec_name(); });
  absl::StatusOr<std::unique_ptr<CudaLinear>> linear;
  if (const absl::Status status = CheckColumns(site.cols); !status.ok()) {
    linear = status;
  } else if (codec != std::end(kCodecs)) {
    linear = (this->*codec->load)(encoded, bias);
  } else {
    linear = absl::UnimplementedError(
        absl::StrCat("codec ", Quoted(encoded.codec_name()), " has no CUDA kernels"));
  }
  if (!linear.ok()) return Annotate(linear.status(), site.name);
  (*linear)->set_stage(ProductStage(encoded));
  return linear;
}

absl::StatusOr<std::unique_ptr<CudaEmbedding>> WeightLoader::LoadEmbedding(
    const EncodedLinear& table) {
  const int64_t cols = table.site().cols;
  US_RETURN_IF_ERROR(CheckColumns(cols));
  if (const std::optional<GroupedType> type = GroupedTypeFromName(table.codec_name())) {
    US_ASSIGN_OR_RETURN(auto integers, LoadGrouped(static_cast<const GroupedTable&>(table)));
    return std::make_unique<CudaEmbedding>(
        std::move(integers), cols, *type == GroupedType::kInt4 ? LaunchEmbedInt4 : LaunchEmbedInt8);
  }
  US_ASSIGN_OR_RETURN(auto linear, LoadDenseSite(table, {}));
  return std::make_unique<CudaEmbedding>(std::move(linear), cols, LaunchEmbed);
}

absl::StatusOr<std::unique_ptr<CudaVector>> WeightLoader::LoadVector(const TensorView& values) {
  const std::vector<float> floats = ToFloatVector(values);
  const auto size = static_cast<int64_t>(floats.size());
  US_ASSIGN_OR_RETURN(CudaMemory memory, CudaMemory::Allocate(device_, FloatBytes(size)));
  if (size > 0) US_RETURN_IF_ERROR(device_.Upload(floats.data(), FloatBytes(size), memory.data()));
  return std::make_unique<CudaVector>(std::move(memory), size);
}

// `read_rows(first, count, out)` writes rows as floats; it is called from several threads.
template <typename ReadRows>
absl::StatusOr<std::unique_ptr<CudaLinear>> WeightLoader::LoadDense(int64_t rows, int64_t cols,
                                                                    absl::Span<const float> bias,
                                                                    const ReadRows& read_rows) {
  PackedMatrix matrix;
  matrix.rows = rows;
  matrix.num_k_tiles = NumKTiles(cols);
  MemoryPlan plan;
  const int64_t tiles = plan.Add(NumMTiles(rows) * matrix.num_k_tiles * kDenseKTileBytes);
  const int64_t scales = plan.Add(FloatBytes(rows));
  const int64_t biases = plan.Add(FloatBytes(static_cast<int64_t>(bias.size())));
  US_ASSIGN_OR_RETURN(const int64_t staged_rows, StagedRows(FloatBytes(cols)));
  US_ASSIGN_OR_RETURN(CudaMemory memory, CudaMemory::Allocate(device_, plan.total_bytes()));
  matrix.tiles = memory.bytes() + tiles;
  matrix.row_scales = reinterpret_cast<float*>(memory.bytes() + scales);
  if (!bias.empty()) {
    US_RETURN_IF_ERROR(device_.Upload(bias.data(), FloatBytes(static_cast<int64_t>(bias.size())),
                                      memory.bytes() + biases));
    matrix.bias = reinterpret_cast<float*>(memory.bytes() + biases);
  }

  // Some rows at a time, so that the host's copy stays small.
  constexpr int64_t kHostFloats = int64_t{4} << 20;
  const int64_t rows_at_once =
      std::clamp(kHostFloats / std::max<int64_t>(cols, 1) / kMTileRows * kMTileRows,
                 int64_t{kMTileRows}, staged_rows);
  std::vector<float> host(static_cast<size_t>(std::min(rows_at_once, rows) * cols));
  for (int64_t first = 0; first < rows; first += rows_at_once) {
    const int64_t count = std::min(rows_at_once, rows - first);
    pool_.ParallelFor(count, 1, [&](int64_t begin, int64_t end, int) {
      if (begin < end) read_rows(first + begin, end - begin, host.data() + begin * cols);
    });
    US_RETURN_IF_ERROR(device_.Upload(host.data(), FloatBytes(count * cols), staging_.data()));
    device_.Check(
        LaunchPackDense(static_cast<const float*>(staging_.data()), cols, first, count,
                        matrix.num_k_tiles, memory.bytes() + tiles,
                        reinterpret_cast<float*>(memory.bytes() + scales), device_.stream()),
        "packing dense weights");
    US_RETURN_IF_ERROR(device_.Finish("packing dense weights"));
  }
  InputTransform transform;
  transform.cols = cols;
  transform.num_k_tiles = matrix.num_k_tiles;
  return std::make_unique<CudaLinear>(std::move(memory), matrix, transform, kDenseKernels);
}

absl::StatusOr<std::unique_ptr<CudaLinear>> WeightLoader::LoadDenseSite(
    const EncodedLinear& encoded, absl::Span<const float> bias) {
  return LoadDense(
      encoded.site().rows, encoded.site().cols, bias,
      [&](int64_t first, int64_t count, float* out) { encoded.DecodeRows(first, count, out); });
}

absl::StatusOr<std::unique_ptr<CudaLinear>> WeightLoader::LoadFold(const EncodedLinear& encoded,
                                                                   absl::Span<const float> bias) {
  const auto& fold = static_cast<const FoldLinear&>(encoded);
  const FoldTransform fold_transform = MakeFoldTransform(fold.layout());
  const std::vector<float> row_scales = fold.Scales();
  const auto num_groups = static_cast<int64_t>(fold_transform.groups.size());
  const auto index_bytes = static_cast<int64_t>(fold_transform.scatter_indices.size());

  PackedMatrix matrix;
  matrix.rows = fold.site().rows;
  if (fold.layout().buckets() > kMaxBuckets) {
    return absl::UnimplementedError(absl::StrCat("expected at most ", kMaxBuckets,
                                                 " buckets, found ", fold.layout().buckets()));
  }
  matrix.num_k_tiles = FoldKTiles(fold.layout().buckets());
  MemoryPlan plan;
  const int64_t tiles = plan.Add(NumMTiles(matrix.rows) * matrix.num_k_tiles * kFoldKTileBytes);
  const int64_t scales = plan.Add(FloatBytes(matrix.rows));
  const int64_t biases = plan.Add(FloatBytes(static_cast<int64_t>(bias.size())));
  const int64_t scatter_indices = plan.Add(index_bytes);
  const int64_t group_bytes = num_groups * static_cast<int64_t>(sizeof(TransformGroup));
  const int64_t groups = plan.Add(group_bytes);
  US_ASSIGN_OR_RETURN(const int64_t staged_rows, StagedRows(fold.row_bytes()));
  US_ASSIGN_OR_RETURN(CudaMemory memory, CudaMemory::Allocate(device_, plan.total_bytes()));
  matrix.tiles = memory.bytes() + tiles;
  matrix.row_scales = reinterpret_cast<float*>(memory.bytes() + scales);
  US_RETURN_IF_ERROR(
      device_.Upload(row_scales.data(), FloatBytes(matrix.rows), memory.bytes() + scales));
  if (!bias.empty()) {
    US_RETURN_IF_ERROR(
        device_.Upload(bias.data(), FloatBytes(matrix.rows), memory.bytes() + biases));
    matrix.bias = reinterpret_cast<float*>(memory.bytes() + biases);
  }
  US_RETURN_IF_ERROR(device_.Upload(fold_transform.scatter_indices.data(), index_bytes,
                                    memory.bytes() + scatter_indices));
  US_RETURN_IF_ERROR(
      device_.Upload(fold_transform.groups.data(), group_bytes, memory.bytes() + groups));
  for (int64_t first = 0; first < matrix.rows; first += staged_rows) {
    const int64_t count = std::min(staged_rows, matrix.rows - first);
    US_RETURN_IF_ERROR(device_.Upload(fold.bits() + first * fold.row_bytes(),
                                      count * fold.row_bytes(), staging_.data()));
    device_.Check(
        LaunchPackFold(static_cast<const uint8_t*>(staging_.data()), fold.row_bytes(), first, count,
                       matrix.num_k_tiles, memory.bytes() + tiles, device_.stream()),
        "packing folded weights");
    US_RETURN_IF_ERROR(device_.Finish("packing folded weights"));
  }

  InputTransform transform;
  transform.groups = reinterpret_cast<const TransformGroup*>(memory.bytes() + groups);
  transform.scatter_indices = memory.bytes() + scatter_indices;
  transform.num_groups = static_cast<int>(num_groups);
  transform.first_group = fold_transform.groups.front();
  transform.index_bytes = fold_transform.index_bytes;
  transform.cols = fold.layout().cols();
  transform.num_k_tiles = matrix.num_k_tiles;
  transform.max_amplification = fold_transform.max_amplification;
  transform.form = InputForm::kHiLoInt8;
  return std::make_unique<CudaLinear>(std::move(memory), matrix, transform, kFoldKernels);
}

absl::StatusOr<std::unique_ptr<CudaLinear>> WeightLoader::LoadAbsMaxMin(
    const EncodedLinear& encoded, absl::Span<const float> bias) {
  const auto& sketched = static_cast<const AbsMaxMinLinear&>(encoded);
  const AbsMaxMinTables tables = MakeAbsMaxMinTables(sketched.layout());
  const std::vector<float> row_scales = sketched.Scales();
  const auto bytes_of = [](const auto& values) {
    return static_cast<int64_t>(values.size() * sizeof(values[0]));
  };

  PackedMatrix matrix;
  matrix.rows = sketched.site().rows;
  matrix.num_k_tiles = tables.num_k_tiles;
  matrix.buckets.num_parts = static_cast<int>(tables.parts.size());
  matrix.buckets.entry_words = tables.entry_words;
  matrix.buckets.words_per_block = tables.words_per_block;
  const int64_t num_blocks = (matrix.rows + kBucketBlockRows - 1) / kBucketBlockRows;
  constexpr int64_t kWordBytes = sizeof(uint32_t);
  MemoryPlan plan;
  const int64_t words = plan.Add(num_blocks * tables.words_per_block * kWordBytes);
  const int64_t scales = plan.Add(FloatBytes(matrix.rows));
  const int64_t biases = plan.Add(bytes_of(bias));
  const int64_t parts = plan.Add(bytes_of(tables.parts));
  const int64_t entries = plan.Add(bytes_of(tables.entries));
  const int64_t scatter_indices = plan.Add(bytes_of(tables.scatter_indices));
  const int64_t groups = plan.Add(bytes_of(tables.groups));
  const int64_t row_codes = sketched.layout().num_buckets();
  // Whole blocks of rows.
  constexpr int64_t kTilesPerBlock = kBucketBlockRows / kMTileRows;
  US_ASSIGN_OR_RETURN(const int64_t staged_pairs, StagedRows(kTilesPerBlock * row_codes));
  const int64_t staged_rows = kTilesPerBlock * staged_pairs;
  US_ASSIGN_OR_RETURN(CudaMemory memory, CudaMemory::Allocate(device_, plan.total_bytes()));
  uint8_t* base = memory.bytes();
  matrix.tiles = base + words;
  matrix.row_scales = reinterpret_cast<float*>(base + scales);
  matrix.buckets.parts = base + parts;
  matrix.buckets.entries = reinterpret_cast<const uint16_t*>(base + entries);
  US_RETURN_IF_ERROR(device_.Upload(row_scales.data(), FloatBytes(matrix.rows), base + scales));
  if (!bias.empty()) {
    US_RETURN_IF_ERROR(device_.Upload(bias.data(), bytes_of(bias), base + biases));
    matrix.bias = reinterpret_cast<float*>(base + biases);
  }
  const auto upload = [&](const auto& values, int64_t offset) {
    return device_.Upload(values.data(), bytes_of(values), base + offset);
  };
  US_RETURN_IF_ERROR(upload(tables.parts, parts));
  US_RETURN_IF_ERROR(upload(tables.entries, entries));
  US_RETURN_IF_ERROR(upload(tables.scatter_indices, scatter_indices));
  US_RETURN_IF_ERROR(upload(tables.groups, groups));

  // Some rows at a time, so that the host's copy stays small.
  constexpr int64_t kHostBytes = int64_t{16} << 20;
  const int64_t rows_at_once =
      std::clamp(kHostBytes / row_codes / kBucketBlockRows * kBucketBlockRows,
                 int64_t{kBucketBlockRows}, staged_rows);
  std::vector<int8_t> codes(static_cast<size_t>(std::min(rows_at_once, matrix.rows) * row_codes));
  for (int64_t first = 0; first < matrix.rows; first += rows_at_once) {
    const int64_t count = std::min(rows_at_once, matrix.rows - first);
    pool_.ParallelFor(count, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        sketched.UnpackRow(first + row, codes.data() + row * row_codes);
      }
    });
    US_RETURN_IF_ERROR(device_.Upload(codes.data(), count * row_codes, staging_.data()));
    for (size_t index = 0; index < tables.parts.size(); ++index) {
      device_.Check(
          LaunchPackAbsMaxMin(static_cast<const int8_t*>(staging_.data()), row_codes,
                              tables.first_codes[index], tables.parts[index], first, count,
                              tables.words_per_block, reinterpret_cast<uint32_t*>(base + words),
                              device_.stream()),
          "packing sketched weights");
    }
    US_RETURN_IF_ERROR(device_.Finish("packing sketched weights"));
  }

  InputTransform transform;
  transform.groups = reinterpret_cast<const TransformGroup*>(base + groups);
  transform.scatter_indices = base + scatter_indices;
  transform.num_groups = static_cast<int>(tables.groups.size());
  transform.first_group = tables.groups.front();
  transform.index_bytes = tables.index_bytes;
  transform.cols = sketched.site().cols;
  transform.num_k_tiles = matrix.num_k_tiles;
  return std::make_unique<CudaLinear>(std::move(memory), matrix, transform, kAbsMaxMinKernels);
}

absl::StatusOr<std::unique_ptr<CudaLinear>> WeightLoader::LoadGrouped(const GroupedTable& table) {
  const bool is_int4 = table.type() == GroupedType::kInt4;
  static_assert(kGroupColumns == kKTileColumns);
  PackedMatrix matrix;
  matrix.rows = table.site().rows;
  const int64_t num_groups = GroupsInRow(table.site().cols);
  matrix.num_k_tiles = NumGroupedKTiles(table.site().cols);
  MemoryPlan plan;
  const int64_t tiles =
      plan.Add(NumMTiles(matrix.rows) * matrix.num_k_tiles * GroupedKTileBytes(is_int4));
  const int64_t row_bytes = table.values().shape[1];
  const int64_t row_scale_bytes = num_groups * static_cast<int64_t>(sizeof(uint16_t));
  US_ASSIGN_OR_RETURN(const int64_t staged_rows, StagedRows(row_bytes + row_scale_bytes));
  US_ASSIGN_OR_RETURN(CudaMemory memory, CudaMemory::Allocate(device_, plan.total_bytes()));
  matrix.tiles = memory.bytes() + tiles;
  matrix.has_half_scales = table.scales().dtype == DType::kF16;
  for (int64_t first = 0; first < matrix.rows; first += staged_rows) {
    const int64_t count = std::min(staged_rows, matrix.rows - first);
    uint8_t* staged_values = staging_.bytes() + count * row_scale_bytes;
    US_RETURN_IF_ERROR(device_.Upload(table.scales().data + first * row_scale_bytes,
                                      count * row_scale_bytes, staging_.data()));
    US_RETURN_IF_ERROR(
        device_.Upload(table.values().data + first * row_bytes, count * row_bytes, staged_values));
    device_.Check(
        LaunchPackGrouped(is_int4, staged_values, table.site().cols,
                          reinterpret_cast<const uint16_t*>(staging_.data()), first, count,
                          matrix.num_k_tiles, memory.bytes() + tiles, device_.stream()),
        "packing a table");
    US_RETURN_IF_ERROR(device_.Finish("packing a table"));
  }
  InputTransform transform;
  transform.cols = table.site().cols;
  transform.num_k_tiles = matrix.num_k_tiles;
  transform.form = InputForm::kHiLoInt8;
  return std::make_unique<CudaLinear>(std::move(memory), matrix, transform,
                                      is_int4 ? kInt4Kernels : kInt8Kernels);
}

}  // namespace ultrasketch::cuda
