// A CUDA device as this process uses it: its stream, its memory account and its errors.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_DEVICE_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_DEVICE_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ultrasketch::cuda {

// OK, or "<call>: <CUDA's name and description of the error>": RESOURCE_EXHAUSTED when memory ran
// out, UNAVAILABLE when the device or its context is lost, otherwise INTERNAL.
absl::Status CudaStatus(cudaError_t error, std::string_view call);

// One thread at a time.
class CudaDevice {
 public:
  // UNAVAILABLE saying why when the device cannot be used.
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Open(int ordinal);
  ~CudaDevice();
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  const std::string& name() const { return name_; }  // "cuda:0"
  const std::string& description() const { return description_; }
  int compute_capability() const { return compute_capability_; }  // 90 for 9.0
  int num_sms() const { return num_sms_; }
  // Most shared memory that a block can have.
  int max_shared_bytes() const { return max_shared_bytes_; }
  cudaStream_t stream() const { return stream_; }
  // Changes with every allocation and release.
  int64_t generation() const { return generation_; }

  // Makes it the calling thread's device: before every other CUDA call of that thread.
  void Activate() const;

  // Bytes that Allocate could still give: of the card's, less a reserve for the driver.
  absl::StatusOr<int64_t> AvailableBytes() const;
  // Bytes of the card's that are taken, by all processes and the driver.
  absl::StatusOr<int64_t> UsedBytes() const;

  // Device memory, not initialized; null for 0 bytes. RESOURCE_EXHAUSTED with bytes needed and
  // available.
  absl::StatusOr<void*> Allocate(int64_t num_bytes);
  void Free(void* memory);

  // From pageable memory; waits.
  absl::Status Upload(const void* source, int64_t num_bytes, void* destination);

  // Keeps the first error of a sequence of asynchronous calls.
  void Check(cudaError_t error, const char* call) {
    if (error != cudaSuccess && error_.ok()) error_ = CudaStatus(error, call);
  }
  // Waits for the stream and returns the first error since the last Finish. When the device does
  // not recover from it, this and all that follow are UNAVAILABLE.
  absl::Status Finish(const char* call);
  // Not OK once the device is lost.
  const absl::Status& lost() const { return lost_; }

 private:
  CudaDevice() = default;

  int ordinal_ = 0;
  std::string name_;
  std::string description_;
  int compute_capability_ = 0;
  int num_sms_ = 0;
  int max_shared_bytes_ = 0;
  cudaStream_t stream_ = nullptr;
  int64_t generation_ = 0;
  absl::Status error_;
  absl::Status lost_;
};

// Device memory that frees itself. Must not outlive the device.
class CudaMemory {
 public:
  CudaMemory() = default;
  static absl::StatusOr<CudaMemory> Allocate(CudaDevice& device, int64_t num_bytes);
  CudaMemory(CudaMemory&& other) noexcept;
  CudaMemory& operator=(CudaMemory&& other) noexcept;
  ~CudaMemory();

  void* data() const { return data_; }
  uint8_t* bytes() const { return static_cast<uint8_t*>(data_); }
  int64_t num_bytes() const { return num_bytes_; }

 private:
  CudaMemory(CudaDevice* device, void* data, int64_t num_bytes)
      : device_(device), data_(data), num_bytes_(num_bytes) {}

  CudaDevice* device_ = nullptr;
  void* data_ = nullptr;
  int64_t num_bytes_ = 0;
};

// Pinned host memory, which the device reads and writes without a detour.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  static absl::StatusOr<PinnedMemory> Allocate(const CudaDevice& device, int64_t num_bytes);
  PinnedMemory(PinnedMemory&& other) noexcept;
  PinnedMemory& operator=(PinnedMemory&& other) noexcept;
  ~PinnedMemory();

  uint8_t* bytes() const { return data_; }
  int64_t num_bytes() const { return num_bytes_; }

 private:
  uint8_t* data_ = nullptr;
  int64_t num_bytes_ = 0;
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_DEVICE_H_
