#include "engine/backends/cpu/cpu_memory.h"

#include "absl/strings/str_cat.h"
#include <sys/mman.h>

#include "engine/backends/cpu/available_memory.h"
#include "engine/base/check.h"
#include "engine/base/strings.h"

namespace ultrasketch {

absl::StatusOr<std::unique_ptr<CpuBuffer>> CpuBuffer::Allocate(int64_t num_bytes) {
  US_CHECK(num_bytes >= 0);
  const int64_t available = AvailableMemoryBytes();
  void* data = MAP_FAILED;
  if (num_bytes <= available) {
    data = mmap(nullptr, static_cast<size_t>(num_bytes == 0 ? 1 : num_bytes),
                PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  }
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "memory: ", num_bytes, " bytes (", HumanBytes(static_cast<double>(num_bytes)), ") needed, ",
        available, " bytes (", HumanBytes(static_cast<double>(available)), ") available"));
  }
  return std::unique_ptr<CpuBuffer>(new CpuBuffer(data, num_bytes));
}

CpuBuffer::~CpuBuffer() { munmap(data_, static_cast<size_t>(num_bytes_ == 0 ? 1 : num_bytes_)); }

}  // namespace ultrasketch
