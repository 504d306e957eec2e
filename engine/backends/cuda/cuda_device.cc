#include "engine/backends/cuda/cuda_device.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"

namespace ultrasketch::cuda {
namespace {

// Left to the driver: code that it loads when a kernel first runs, and its own buffers.
constexpr int64_t kReservedBytes = int64_t{64} << 20;

absl::StatusCode CodeOf(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return absl::StatusCode::kResourceExhausted;
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorDevicesUnavailable:
    case cudaErrorInsufficientDriver:
    case cudaErrorInitializationError:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorMisalignedAddress:
    case cudaErrorECCUncorrectable:
    case cudaErrorSystemNotReady:
      return absl::StatusCode::kUnavailable;
    default:
      return absl::StatusCode::kInternal;
  }
}

}  // namespace

absl::Status CudaStatus(cudaError_t error, std::string_view call) {
  if (error == cudaSuccess) return absl::OkStatus();
  return {CodeOf(error),
          absl::StrCat(A(call), ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error))};
}

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Open(int ordinal) {
  std::unique_ptr<CudaDevice> device(new CudaDevice);
  device->ordinal_ = ordinal;
  device->name_ = absl::StrCat("cuda:", ordinal);
  const auto check = [&](cudaError_t error, const char* call) {
    if (error == cudaSuccess) return absl::OkStatus();
    // So that the next call does not find it.
    static_cast<void>(cudaGetLastError());
    return absl::UnavailableError(
        absl::StrCat("device ", device->name_, ": ", CudaStatus(error, call).message()));
  };
  int num_devices = 0;
  US_RETURN_IF_ERROR(check(cudaGetDeviceCount(&num_devices), "cudaGetDeviceCount"));
  if (ordinal >= num_devices) {
    return absl::UnavailableError(absl::StrCat("device ", device->name_, ": there ",
                                               num_devices == 1 ? "is " : "are ", num_devices,
                                               num_devices == 1 ? " device" : " devices"));
  }
  US_RETURN_IF_ERROR(check(cudaSetDevice(ordinal), "cudaSetDevice"));
  cudaDeviceProp properties;
  US_RETURN_IF_ERROR(
      check(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties"));
  if (properties.major < 8) {
    return absl::UnavailableError(absl::StrCat("device ", device->name_, ": ", properties.name,
                                               ": compute capability 8.0 or later needed,",
                                               " found ", properties.major, ".", properties.minor));
  }
  device->description_ =
      absl::StrCat(properties.name, ", compute capability ", properties.major, ".",
                   properties.minor, ", ", properties.multiProcessorCount, " multiprocessors, ",
                   HumanBytes(static_cast<double>(properties.totalGlobalMem)));
  device->compute_capability_ = 10 * properties.major + properties.minor;
  device->num_sms_ = properties.multiProcessorCount;
  device->max_shared_bytes_ = static_cast<int>(properties.sharedMemPerBlockOptin);
  US_RETURN_IF_ERROR(check(cudaStreamCreateWithFlags(&device->stream_, cudaStreamNonBlocking),
                           "cudaStreamCreateWithFlags"));
  return device;
}

CudaDevice::~CudaDevice() {
  if (stream_ == nullptr) return;
  Activate();
  static_cast<void>(cudaStreamDestroy(stream_));
}

void CudaDevice::Activate() const {
  // Fails only once the device is lost, which the calls after it report.
  static_cast<void>(cudaSetDevice(ordinal_));
}

absl::StatusOr<int64_t> CudaDevice::AvailableBytes() const {
  Activate();
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  US_RETURN_IF_ERROR(CudaStatus(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo"));
  return std::max<int64_t>(0, static_cast<int64_t>(free_bytes) - kReservedBytes);
}

absl::StatusOr<int64_t> CudaDevice::UsedBytes() const {
  Activate();
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  US_RETURN_IF_ERROR(CudaStatus(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo"));
  return static_cast<int64_t>(total_bytes - free_bytes);
}

absl::StatusOr<void*> CudaDevice::Allocate(int64_t num_bytes) {
  if (num_bytes == 0) return nullptr;
  US_RETURN_IF_ERROR(lost_);
  US_ASSIGN_OR_RETURN(const int64_t available, AvailableBytes());
  void* memory = nullptr;
  cudaError_t error = cudaErrorMemoryAllocation;
  if (num_bytes <= available) error = cudaMalloc(&memory, static_cast<size_t>(num_bytes));
  if (error == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    return absl::ResourceExhaustedError(
        absl::StrCat(name_, ": ", num_bytes, " bytes needed, ", available, " bytes available"));
  }
  US_RETURN_IF_ERROR(CudaStatus(error, "cudaMalloc"));
  ++generation_;
  return memory;
}

void CudaDevice::Free(void* memory) {
  if (memory == nullptr) return;
  ++generation_;
  Activate();
  // Waits for kernels that use it. An error is one of theirs, and reported by Finish.
  static_cast<void>(cudaFree(memory));
}

absl::Status CudaDevice::Upload(const void* source, int64_t num_bytes, void* destination) {
  US_RETURN_IF_ERROR(lost_);
  Activate();
  Check(cudaMemcpyAsync(destination, source, static_cast<size_t>(num_bytes), cudaMemcpyHostToDevice,
                        stream_),
        "cudaMemcpyAsync to the device");
  return Finish("upload");
}

absl::Status CudaDevice::Finish(const char* call) {
  US_RETURN_IF_ERROR(lost_);
  Activate();
  Check(cudaStreamSynchronize(stream_), call);
  if (error_.ok()) return absl::OkStatus();
  absl::Status status = Annotate(error_, name_);
  error_ = absl::OkStatus();
  // Errors of a launch are over with it; those of a kernel stay with the context.
  static_cast<void>(cudaGetLastError());
  if (cudaStreamSynchronize(stream_) == cudaSuccess) return status;
  lost_ = absl::UnavailableError(status.message());
  return lost_;
}

absl::StatusOr<CudaMemory> CudaMemory::Allocate(CudaDevice& device, int64_t num_bytes) {
  US_ASSIGN_OR_RETURN(void* const data, device.Allocate(num_bytes));
  return CudaMemory(&device, data, num_bytes);
}

CudaMemory::CudaMemory(CudaMemory&& other) noexcept
    : device_(other.device_),
      data_(std::exchange(other.data_, nullptr)),
      num_bytes_(std::exchange(other.num_bytes_, 0)) {}

CudaMemory& CudaMemory::operator=(CudaMemory&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}

CudaMemory::~CudaMemory() {
  if (data_ != nullptr) device_->Free(data_);
}

absl::StatusOr<PinnedMemory> PinnedMemory::Allocate(const CudaDevice& device, int64_t num_bytes) {
  PinnedMemory memory;
  device.Activate();
  void* data = nullptr;
  US_RETURN_IF_ERROR(
      CudaStatus(cudaMallocHost(&data, static_cast<size_t>(num_bytes)), "cudaMallocHost"));
  memory.data_ = static_cast<uint8_t*>(data);
  memory.num_bytes_ = num_bytes;
  return memory;
}

PinnedMemory::PinnedMemory(PinnedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), num_bytes_(std::exchange(other.num_bytes_, 0)) {}

PinnedMemory& PinnedMemory::operator=(PinnedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}

PinnedMemory::~PinnedMemory() {
  if (data_ != nullptr) static_cast<void>(cudaFreeHost(data_));
}

}  // namespace ultrasketch::cuda
