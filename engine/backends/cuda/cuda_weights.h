// What the CUDA backend holds for a model.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_WEIGHTS_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_WEIGHTS_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/backends/backend.h"
#include "engine/backends/cuda/cuda_device.h"
#include "engine/backends/cuda/kernels.h"
#include "engine/backends/step_stages.h"
#include "engine/base/thread_pool.h"
#include "engine/codecs/cuda/input_transform.h"
#include "engine/codecs/cuda/product.h"
#include "engine/codecs/grouped/grouped_table.h"

namespace ultrasketch::cuda {

class CudaBuffer final : public DeviceBuffer {
 public:
  explicit CudaBuffer(CudaMemory memory) : memory_(std::move(memory)) {}
  // A part of the workspace.
  explicit CudaBuffer(std::unique_ptr<DeviceBuffer> part) : part_(std::move(part)) {}
  void* data() override { return part_ != nullptr ? part_->data() : memory_.data(); }
  const void* data() const override { return part_ != nullptr ? part_->data() : memory_.data(); }
  int64_t num_bytes() const override {
    return part_ != nullptr ? part_->num_bytes() : memory_.num_bytes();
  }
  int64_t resident_bytes() const override {
    return part_ != nullptr ? part_->resident_bytes() : memory_.num_bytes();
  }

 private:
  CudaMemory memory_;
  std::unique_ptr<DeviceBuffer> part_;  // null: memory_
};

class CudaVector final : public DeviceVector {
 public:
  CudaVector(CudaMemory memory, int64_t size) : memory_(std::move(memory)), size_(size) {}
  int64_t size() const override { return size_; }
  int64_t resident_bytes() const override { return memory_.num_bytes(); }
  const float* data() const { return static_cast<const float*>(memory_.data()); }

 private:
  CudaMemory memory_;
  int64_t size_;
};

// A codec's products.
struct ProductKernels {
  LaunchProduct launch;
  // Whether the product takes these arguments gated; null: none does.
  bool (*can_gate)(const ProductArguments& arguments) = nullptr;
  bool is_fused = false;  // LaunchFusedProduct takes its tiles
};

// Packed weights, how to multiply with them, and the sketch of their inputs.
class CudaLinear final : public DeviceLinear {
 public:
  CudaLinear(CudaMemory memory, const PackedMatrix& matrix, const InputTransform& transform,
             const ProductKernels& kernels)
      : memory_(std::move(memory)), matrix_(matrix), transform_(transform), kernels_(kernels) {}

  // What products with it count as.
  StepStage stage() const { return stage_; }
  void set_stage(StepStage stage) { stage_ = stage; }

  int64_t rows() const override { return matrix_.rows; }
  int64_t cols() const override { return transform_.cols; }
  int64_t resident_bytes() const override { return memory_.num_bytes(); }

  const PackedMatrix& matrix() const { return matrix_; }
  const InputTransform& transform() const { return transform_; }
  LaunchProduct launch() const { return kernels_.launch; }
  bool can_gate(const ProductArguments& arguments) const {
    return kernels_.can_gate != nullptr && kernels_.can_gate(arguments);
  }
  bool is_fused() const { return kernels_.is_fused; }

 private:
  CudaMemory memory_;
  PackedMatrix matrix_;
  InputTransform transform_;
  ProductKernels kernels_;
  StepStage stage_ = StepStage::kHead;  // of a table
};

// A table, packed as weights: it serves as an output head too.
class CudaEmbedding final : public DeviceEmbedding {
 public:
  CudaEmbedding(std::unique_ptr<CudaLinear> table, int64_t hidden_size,
                LaunchEmbedFunction launch_function)
      : table_(std::move(table)), hidden_size_(hidden_size), launch_embed_(launch_function) {}
  int64_t resident_bytes() const override { return table_->resident_bytes(); }
  int64_t hidden_size() const { return hidden_size_; }
  const CudaLinear& table() const { return *table_; }
  LaunchEmbedFunction launch_embed() const { return launch_embed_; }

 private:
  std::unique_ptr<CudaLinear> table_;
  int64_t hidden_size_;
  LaunchEmbedFunction launch_embed_;
};

// Loads weights: reads them on the host, packs them on the device. Waits until they are there.
class WeightLoader {
 public:
  WeightLoader(CudaDevice& device, ThreadPool& pool) : device_(device), pool_(pool) {}

  // Frees what it has taken to load weights with, until more are loaded.
  void FreeStaging();
  int64_t staging_bytes() const { return staging_.num_bytes(); }

  // UNIMPLEMENTED for a codec without CUDA kernels or more columns than a block can hold.
  absl::StatusOr<std::unique_ptr<CudaLinear>> LoadLinear(const EncodedLinear& encoded,
                                                         absl::Span<const float> bias);
  absl::StatusOr<std::unique_ptr<CudaEmbedding>> LoadEmbedding(const EncodedLinear& table);
  absl::StatusOr<std::unique_ptr<CudaVector>> LoadVector(const TensorView& values);

 private:
  template <typename ReadRows>
  absl::StatusOr<std::unique_ptr<CudaLinear>> LoadDense(int64_t rows, int64_t cols,
                                                        absl::Span<const float> bias,
                                                        const ReadRows& read_rows);
  absl::StatusOr<std::unique_ptr<CudaLinear>> LoadDenseSite(const EncodedLinear& encoded,
                                                            absl::Span<const float> bias);
  absl::StatusOr<std::unique_ptr<CudaLinear>> LoadFold(const EncodedLinear& encoded,
                                                       absl::Span<const float> bias);
  absl::StatusOr<std::unique_ptr<CudaLinear>> LoadAbsMaxMin(const EncodedLinear& encoded,
                                                            absl::Span<const float> bias);
  absl::StatusOr<std::unique_ptr<CudaLinear>> LoadGrouped(const GroupedTable& table);
  absl::Status CheckColumns(int64_t cols) const;
  // Rows of `row_bytes` that the staging memory holds: whole tiles.
  absl::StatusOr<int64_t> StagedRows(int64_t row_bytes);

  CudaDevice& device_;
  CudaMemory staging_;  // empty when nothing is being loaded
  ThreadPool& pool_;
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_WEIGHTS_H_
