// What a codec's cuda/ folder gives, to be loaded and served on CUDA devices: one CudaCodec, and
// its line in registry.cc.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_CUDA_CODEC_H_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_CUDA_CODEC_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/base/thread_pool.h"
#include "engine/codecs/codec.h"
#include "engine/codecs/cuda/input_transform.h"
#include "engine/codecs/cuda/product.h"

namespace ultrasketch::cuda {

// The parts of a matrix's device memory, each aligned to 256 bytes: one allocation.
class MemoryPlan {
 public:
  struct Copy {
    const void* source;
    int64_t num_bytes;
    int64_t offset;
  };

  // The offset of a part of this size, which the codec writes.
  int64_t Add(int64_t num_bytes) {
    constexpr int64_t kAlignment = 256;
    const int64_t offset = total_bytes_;
    total_bytes_ += (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  }
  // The offset of a copy of a vector or span, which must still be there when the plan is allocated.
  template <typename Values>
  int64_t AddCopy(const Values& values) {
    const auto num_bytes = static_cast<int64_t>(values.size() * sizeof(values[0]));
    const int64_t offset = Add(num_bytes);
    if (num_bytes > 0) copies_.push_back({values.data(), num_bytes, offset});
    return offset;
  }

  int64_t total_bytes() const { return total_bytes_; }
  const std::vector<Copy>& copies() const { return copies_; }

 private:
  int64_t total_bytes_ = 0;
  std::vector<Copy> copies_;
};

// What a codec packs a matrix with: the backend's device, as far as that takes it. One thread at a
// time.
class WeightPacker {
 public:
  virtual ~WeightPacker() = default;

  virtual ThreadPool& pool() = 0;
  virtual cudaStream_t stream() = 0;

  // Device memory of the matrix, which keeps it, with the plan's copies in it. Once for each
  // matrix. RESOURCE_EXHAUSTED with bytes needed and available.
  virtual absl::StatusOr<uint8_t*> Allocate(const MemoryPlan& plan) = 0;

  // How many rows of `row_bytes` the staging memory holds, a multiple of kMTileRows. UNIMPLEMENTED
  // for rows of which it does not hold that many.
  virtual absl::StatusOr<int64_t> StagedRows(int64_t row_bytes) = 0;
  // Device memory for what is packed next, after StagedRows.
  virtual uint8_t* staging() = 0;

  // From pageable memory; waits.
  virtual absl::Status Upload(const void* source, int64_t num_bytes, void* destination) = 0;
  // Waits for what was launched with this result.
  virtual absl::Status Finish(cudaError_t launched, const char* call) = 0;
};

// A matrix in device memory, and how its inputs are transformed.
struct PackedLinear {
  PackedMatrix matrix;
  InputTransform transform;
};

struct CudaCodec {
  std::string_view name;  // EncodedLinear::codec_name

  // Packs a matrix of this codec; `bias` is [rows] or empty. UNIMPLEMENTED for what the kernels
  // cannot multiply.
  absl::StatusOr<PackedLinear> (*pack)(const EncodedLinear& encoded, absl::Span<const float> bias,
                                       WeightPacker& packer);
  LaunchProduct launch_product;
  // Whether the product takes these arguments gated; null: none does.
  bool (*can_gate)(const ProductArguments& arguments) = nullptr;
  // Whether LaunchFusedProduct (engine/backends/cuda) takes its tiles.
  bool is_fused = false;
  // Rows of a token embedding; null: the codec has none.
  LaunchEmbedFunction launch_embed = nullptr;
};

// The codecs, each defined in its folder.
extern const CudaCodec kAbsMaxMinCuda;
extern const CudaCodec kDenseCuda;
extern const CudaCodec kFoldCuda;
extern const CudaCodec kInt4Cuda;
extern const CudaCodec kInt8Cuda;

// Null when there are no CUDA kernels for the codec of this name.
const CudaCodec* FindCudaCodec(std::string_view name);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_CUDA_CODEC_H_
