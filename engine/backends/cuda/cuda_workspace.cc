#include "engine/backends/cuda/cuda_workspace.h"

#include "engine/base/status.h"

namespace ultrasketch::cuda {
namespace {

constexpr int64_t kRowsBytes = int64_t{32} << 20;
constexpr int64_t kPartialsBytes = int64_t{64} << 20;
constexpr int64_t kFinishedBytes = int64_t{1} << 20;
constexpr int64_t kZeroBytes = int64_t{16} << 10;

class Block final : public DeviceBuffer {
 public:
  Block(std::shared_ptr<CudaDevice> device, CudaMemory memory)
      : device_(std::move(device)), memory_(std::move(memory)) {}
  void* data() override { return memory_.data(); }
  const void* data() const override { return memory_.data(); }
  int64_t num_bytes() const override { return memory_.num_bytes(); }

 private:
  const std::shared_ptr<CudaDevice> device_;  // outlives what is on it
  CudaMemory memory_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<CudaWorkspace>> CudaWorkspace::Create(int ordinal, int num_threads) {
  US_ASSIGN_OR_RETURN(std::shared_ptr<CudaDevice> device, CudaDevice::Open(ordinal));
  US_ASSIGN_OR_RETURN(CudaMemory rows, CudaMemory::Allocate(*device, kRowsBytes));
  US_ASSIGN_OR_RETURN(CudaMemory partials, CudaMemory::Allocate(*device, kPartialsBytes));
  US_ASSIGN_OR_RETURN(CudaMemory finished, CudaMemory::Allocate(*device, kFinishedBytes));
  US_ASSIGN_OR_RETURN(CudaMemory zeros, CudaMemory::Allocate(*device, kZeroBytes));
  // Steps begin on streams of their own.
  for (const CudaMemory* memory : {&finished, &zeros}) {
    device->Check(cudaMemsetAsync(memory->data(), 0, static_cast<size_t>(memory->num_bytes()),
                                  device->stream()),
                  "clearing the workspace");
  }
  device->Check(cudaStreamSynchronize(device->stream()), "clearing the workspace");
  return std::shared_ptr<CudaWorkspace>(new CudaWorkspace(std::move(device), std::move(rows),
                                                          std::move(partials), std::move(finished),
                                                          std::move(zeros), num_threads));
}

absl::StatusOr<std::unique_ptr<DeviceBuffer>> CudaWorkspace::AllocateBlock(int64_t num_bytes) {
  US_ASSIGN_OR_RETURN(CudaMemory memory, CudaMemory::Allocate(*device_, num_bytes));
  return std::make_unique<Block>(device_, std::move(memory));
}

}  // namespace ultrasketch::cuda
