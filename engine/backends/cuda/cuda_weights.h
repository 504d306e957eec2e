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
#include "engine/backends/step_stages.h"
#include "engine/base/thread_pool.h"
#include "engine/codecs/cuda/cuda_codec.h"

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

// Packed weights, how to multiply with them, and the transform of their inputs.
class CudaLinear final : public DeviceLinear {
 public:
  CudaLinear(CudaMemory memory, const PackedLinear& packed, const CudaCodec& codec)
      : memory_(std::move(memory)), packed_(packed), codec_(codec) {}

  // What products with it count as.
  StepStage stage() const { return stage_; }
  void set_stage(StepStage stage) { stage_ = stage; }

  int64_t rows() const override { return packed_.matrix.rows; }
  int64_t cols() const override { return packed_.transform.cols; }
  int64_t resident_bytes() const override { return memory_.num_bytes(); }

  const PackedMatrix& matrix() const { return packed_.matrix; }
  const InputTransform& transform() const { return packed_.transform; }
  const CudaCodec& codec() const { return codec_; }
  bool can_gate(const ProductArguments& arguments) const {
    return codec_.can_gate != nullptr && codec_.can_gate(arguments);
  }

 private:
  CudaMemory memory_;
  PackedLinear packed_;
  const CudaCodec& codec_;
  StepStage stage_ = StepStage::kHead;  // of a table
};

// A table, packed as weights: it serves as an output head too.
class CudaEmbedding final : public DeviceEmbedding {
 public:
  explicit CudaEmbedding(std::unique_ptr<CudaLinear> table) : table_(std::move(table)) {}
  int64_t resident_bytes() const override { return table_->resident_bytes(); }
  const CudaLinear& table() const { return *table_; }

 private:
  std::unique_ptr<CudaLinear> table_;
};

// Loads weights: reads them on the host, has their codec pack them on the device. Waits until they
// are there.
class WeightLoader final : private WeightPacker {
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
  absl::StatusOr<std::unique_ptr<CudaLinear>> Pack(const EncodedLinear& encoded,
                                                   absl::Span<const float> bias);

  ThreadPool& pool() override { return pool_; }
  cudaStream_t stream() override { return device_.stream(); }
  absl::StatusOr<uint8_t*> Allocate(const MemoryPlan& plan) override;
  absl::StatusOr<int64_t> StagedRows(int64_t row_bytes) override;
  uint8_t* staging() override { return staging_.bytes(); }
  absl::Status Upload(const void* source, int64_t num_bytes, void* destination) override {
    return device_.Upload(source, num_bytes, destination);
  }
  absl::Status Finish(cudaError_t launched, const char* call) override {
    device_.Check(launched, call);
    return device_.Finish(call);
  }

  CudaDevice& device_;
  CudaMemory staging_;  // empty when nothing is being loaded
  CudaMemory packing_;  // of the matrix that is being packed
  ThreadPool& pool_;
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_WEIGHTS_H_
