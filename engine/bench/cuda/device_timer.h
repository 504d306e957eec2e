// Times kernels on a CUDA device.
#ifndef ULTRASKETCH_ENGINE_BENCH_CUDA_DEVICE_TIMER_H_
#define ULTRASKETCH_ENGINE_BENCH_CUDA_DEVICE_TIMER_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ultrasketch::cuda {

// INTERNAL naming the call, RESOURCE_EXHAUSTED when memory ran out.
absl::Status CheckCuda(cudaError_t error, const char* call);

// Device memory of random bytes that are finite numbers as fp16, bfloat16 and float.
class RandomMemory {
 public:
  static absl::StatusOr<std::unique_ptr<RandomMemory>> Create(int64_t num_bytes);
  ~RandomMemory();
  RandomMemory(const RandomMemory&) = delete;
  RandomMemory& operator=(const RandomMemory&) = delete;

  template <typename T = uint8_t>
  T* At(int64_t byte_offset = 0) const {
    return reinterpret_cast<T*>(data_ + byte_offset);
  }
  // Replaces the first bytes.
  absl::Status Write(const void* source, int64_t num_bytes, int64_t byte_offset = 0);

 private:
  RandomMemory() = default;
  uint8_t* data_ = nullptr;
};

// One thread at a time.
class DeviceTimer {
 public:
  // `seconds` are spent on each measurement, at least five repetitions.
  static absl::StatusOr<std::unique_ptr<DeviceTimer>> Create(int ordinal, double seconds);
  ~DeviceTimer();
  DeviceTimer(const DeviceTimer&) = delete;
  DeviceTimer& operator=(const DeviceTimer&) = delete;

  const cudaDeviceProp& properties() const { return properties_; }
  cudaStream_t stream() const { return stream_; }

  // Copies of an operand that together are several times L2.
  int NumCopies(int64_t bytes_each) const;

  // Microseconds of a launch: the median over repetitions of a graph of launches, one for each of
  // `num_copies` and at least eight, by CUDA events. `launch(i)` launches on copy i.
  absl::StatusOr<double> Time(int num_copies, const std::function<absl::Status(int)>& launch);

 private:
  DeviceTimer() = default;

  cudaDeviceProp properties_ = {};
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
  double seconds_ = 0.05;
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BENCH_CUDA_DEVICE_TIMER_H_
