#include "engine/backends/cuda/cuda_weights.h"

#include <vector>

#include "absl/strings/str_cat.h"

#include "engine/backends/cuda/kernels.h"
#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/codecs/cuda/tile_layout.h"

namespace ultrasketch::cuda {
namespace {

// Holds 16 rows of floats of as many columns as a block can hold, several times.
constexpr int64_t kStagingBytes = int64_t{16} << 20;

}  // namespace

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

absl::StatusOr<uint8_t*> WeightLoader::Allocate(const MemoryPlan& plan) {
  US_ASSIGN_OR_RETURN(packing_, CudaMemory::Allocate(device_, plan.total_bytes()));
  for (const MemoryPlan::Copy& copy : plan.copies()) {
    US_RETURN_IF_ERROR(Upload(copy.source, copy.num_bytes, packing_.bytes() + copy.offset));
  }
  return packing_.bytes();
}

absl::StatusOr<std::unique_ptr<CudaLinear>> WeightLoader::Pack(const EncodedLinear& encoded,
                                                               absl::Span<const float> bias) {
  const int64_t cols = encoded.site().cols;
  if (const int64_t most = MaxInputColumns(device_.max_shared_bytes()); cols > most) {
    return absl::UnimplementedError(
        absl::StrCat("expected at most ", most, " columns on ", device_.name(), ", found ", cols));
  }
  const CudaCodec* const codec = FindCudaCodec(encoded.codec_name());
  if (codec == nullptr) {
    return absl::UnimplementedError(
        absl::StrCat("codec ", Quoted(encoded.codec_name()), " has no CUDA kernels"));
  }
  absl::StatusOr<PackedLinear> packed = codec->pack(encoded, bias, *this);
  CudaMemory memory = std::move(packing_);
  if (!packed.ok()) return packed.status();
  return std::make_unique<CudaLinear>(std::move(memory), *packed, *codec);
}

absl::StatusOr<std::unique_ptr<CudaLinear>> WeightLoader::LoadLinear(const EncodedLinear& encoded,
                                                                     absl::Span<const float> bias) {
  const LinearSite& site = encoded.site();
  US_CHECK(bias.empty() || static_cast<int64_t>(bias.size()) == site.rows);
  absl::StatusOr<std::unique_ptr<CudaLinear>> linear = Pack(encoded, bias);
  if (!linear.ok()) return Annotate(linear.status(), site.name);
  (*linear)->set_stage(ProductStage(encoded));
  return linear;
}

absl::StatusOr<std::unique_ptr<CudaEmbedding>> WeightLoader::LoadEmbedding(
    const EncodedLinear& table) {
  US_ASSIGN_OR_RETURN(auto packed, Pack(table, {}));
  US_CHECK(packed->codec().launch_embed != nullptr);
  return std::make_unique<CudaEmbedding>(std::move(packed));
}

absl::StatusOr<std::unique_ptr<CudaVector>> WeightLoader::LoadVector(const TensorView& values) {
  const std::vector<float> floats = ToFloatVector(values);
  const auto size = static_cast<int64_t>(floats.size());
  const int64_t num_bytes = size * static_cast<int64_t>(sizeof(float));
  US_ASSIGN_OR_RETURN(CudaMemory memory, CudaMemory::Allocate(device_, num_bytes));
  if (size > 0) US_RETURN_IF_ERROR(device_.Upload(floats.data(), num_bytes, memory.data()));
  return std::make_unique<CudaVector>(std::move(memory), size);
}

}  // namespace ultrasketch::cuda
