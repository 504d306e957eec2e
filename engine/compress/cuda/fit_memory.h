// Memory of a fit on a CUDA device: allocations come and go with every site, in the order of the
// stream, from a pool that keeps what it has been given.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_CUDA_FIT_MEMORY_H_
#define ULTRASKETCH_ENGINE_COMPRESS_CUDA_FIT_MEMORY_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/backends/cuda/cuda_device.h"

namespace ultrasketch::cuda {

class FitMemory;

// An array in device memory. Must not outlive its memory.
template <typename Value>
class Array {
 public:
  Array() = default;
  Array(FitMemory* memory, Value* data, int64_t size) : memory_(memory), data_(data), size_(size) {}
  Array(Array&& other) noexcept { *this = std::move(other); }
  Array& operator=(Array&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Array();

  Value* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  FitMemory* memory_ = nullptr;
  Value* data_ = nullptr;
  int64_t size_ = 0;
};

class FitMemory {
 public:
  static absl::StatusOr<std::unique_ptr<FitMemory>> Create(int ordinal);
  ~FitMemory();
  FitMemory(const FitMemory&) = delete;
  FitMemory& operator=(const FitMemory&) = delete;

  CudaDevice& device() { return *device_; }
  cudaStream_t stream() const { return device_->stream(); }

  // Keeps the error of a launch, if there was one.
  void Check(const char* call) { device_->Check(cudaGetLastError(), call); }

  // Not initialized. RESOURCE_EXHAUSTED with bytes needed and available.
  template <typename Value>
  absl::StatusOr<Array<Value>> Allocate(int64_t size) {
    absl::StatusOr<void*> data = AllocateBytes(size * static_cast<int64_t>(sizeof(Value)));
    if (!data.ok()) return data.status();
    return Array<Value>(this, static_cast<Value*>(*data), size);
  }
  template <typename Value>
  absl::StatusOr<Array<Value>> AllocateZero(int64_t size) {
    absl::StatusOr<Array<Value>> array = Allocate<Value>(size);
    if (array.ok() && size > 0) {
      device_->Check(
          cudaMemsetAsync(array->data(), 0, static_cast<size_t>(size) * sizeof(Value), stream()),
          "cudaMemsetAsync");
    }
    return array;
  }
  // With the host's values.
  template <typename Value>
  absl::StatusOr<Array<Value>> Load(absl::Span<const Value> values) {
    absl::StatusOr<Array<Value>> array = Allocate<Value>(static_cast<int64_t>(values.size()));
    if (!array.ok()) return array;
    const absl::Status status = Upload(values, array->data());
    if (!status.ok()) return status;
    return array;
  }

  // Both wait; the first error of what the stream had to do before is theirs.
  template <typename Value>
  absl::Status Upload(absl::Span<const Value> values, Value* to) {
    if (values.empty()) return absl::OkStatus();
    return device_->Upload(values.data(), static_cast<int64_t>(values.size() * sizeof(Value)), to);
  }
  template <typename Value>
  absl::Status Download(const Value* from, absl::Span<Value> values) {
    if (values.empty()) return absl::OkStatus();
    device_->Activate();
    device_->Check(cudaMemcpyAsync(values.data(), from, values.size() * sizeof(Value),
                                   cudaMemcpyDeviceToHost, stream()),
                   "cudaMemcpyAsync from the device");
    return device_->Finish("download");
  }

  // Most bytes that the pool has held.
  int64_t peak_bytes() const;
  // What it could still give.
  int64_t available_bytes() const;

  // Called by arrays.
  void Free(void* data);

 private:
  FitMemory() = default;
  absl::StatusOr<void*> AllocateBytes(int64_t num_bytes);

  std::unique_ptr<CudaDevice> device_;
  cudaMemPool_t pool_ = nullptr;
};

template <typename Value>
Array<Value>::~Array() {
  if (data_ != nullptr) memory_->Free(data_);
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_COMPRESS_CUDA_FIT_MEMORY_H_
