#include "engine/backends/cpu/cpu_workspace.h"

#include "engine/backends/cpu/cpu_memory.h"
#include "engine/base/resident_memory.h"

namespace ultrasketch {

float* CpuWorkspace::Scratch(int thread, int64_t size) {
  std::vector<float>& scratch = scratch_[static_cast<size_t>(thread)];
  if (static_cast<int64_t>(scratch.size()) < size) scratch.resize(static_cast<size_t>(size));
  return scratch.data();
}

absl::StatusOr<std::unique_ptr<DeviceBuffer>> CpuWorkspace::AllocateBlock(int64_t num_bytes) {
  return CpuBuffer::Allocate(num_bytes);
}

int64_t CpuWorkspace::ResidentBytesOf(const void* data, int64_t num_bytes) const {
  return ResidentBytes(data, num_bytes);
}

}  // namespace ultrasketch
