#include "engine/compress/cuda/fit_memory.h"

#include <limits>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"

namespace ultrasketch::cuda {

absl::StatusOr<std::unique_ptr<FitMemory>> FitMemory::Create(int ordinal) {
  std::unique_ptr<FitMemory> memory(new FitMemory);
  US_ASSIGN_OR_RETURN(memory->device_, CudaDevice::Open(ordinal));
  cudaMemPoolProps properties = {};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.handleTypes = cudaMemHandleTypeNone;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = ordinal;
  US_RETURN_IF_ERROR(
      CudaStatus(cudaMemPoolCreate(&memory->pool_, &properties), "cudaMemPoolCreate"));
  // Keeps all of it until there is not enough.
  uint64_t threshold = std::numeric_limits<uint64_t>::max();
  US_RETURN_IF_ERROR(CudaStatus(
      cudaMemPoolSetAttribute(memory->pool_, cudaMemPoolAttrReleaseThreshold, &threshold),
      "cudaMemPoolSetAttribute"));
  return memory;
}

FitMemory::~FitMemory() {
  if (pool_ == nullptr) return;
  device_->Activate();
  static_cast<void>(cudaStreamSynchronize(stream()));
  static_cast<void>(cudaMemPoolDestroy(pool_));
}

absl::StatusOr<void*> FitMemory::AllocateBytes(int64_t num_bytes) {
  if (num_bytes == 0) return nullptr;
  US_RETURN_IF_ERROR(device_->lost());
  device_->Activate();
  void* data = nullptr;
  cudaError_t error =
      cudaMallocFromPoolAsync(&data, static_cast<size_t>(num_bytes), pool_, stream());
  if (error == cudaErrorMemoryAllocation) {
    // What the pool has may be in pieces.
    static_cast<void>(cudaGetLastError());
    US_RETURN_IF_ERROR(device_->Finish("cudaStreamSynchronize"));
    static_cast<void>(cudaMemPoolTrimTo(pool_, 0));
    error = cudaMallocFromPoolAsync(&data, static_cast<size_t>(num_bytes), pool_, stream());
  }
  if (error == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    return absl::ResourceExhaustedError(absl::StrCat(device_->name(), ": ", num_bytes,
                                                     " bytes needed, ", available_bytes(),
                                                     " bytes available"));
  }
  US_RETURN_IF_ERROR(CudaStatus(error, "cudaMallocFromPoolAsync"));
  return data;
}

void FitMemory::Free(void* data) {
  device_->Activate();
  device_->Check(cudaFreeAsync(data, stream()), "cudaFreeAsync");
}

int64_t FitMemory::peak_bytes() const {
  uint64_t bytes = 0;
  static_cast<void>(cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrReservedMemHigh, &bytes));
  return static_cast<int64_t>(bytes);
}

int64_t FitMemory::available_bytes() const {
  uint64_t reserved = 0;
  uint64_t used = 0;
  static_cast<void>(cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrReservedMemCurrent, &reserved));
  static_cast<void>(cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrUsedMemCurrent, &used));
  const absl::StatusOr<int64_t> available = device_->AvailableBytes();
  return available.value_or(0) + static_cast<int64_t>(reserved - used);
}

}  // namespace ultrasketch::cuda
