#include "engine/backends/cpu/cpu_memory.h"

#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include <sys/mman.h>

#include "engine/backends/cpu/available_memory.h"
#include "engine/base/check.h"
#include "engine/base/strings.h"

namespace ultrasketch {

namespace {

int64_t PageBytes() {
  static const int64_t page_bytes = sysconf(_SC_PAGESIZE);
  return page_bytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CpuBuffer>> CpuBuffer::Allocate(int64_t num_bytes) {
  US_CHECK(num_bytes >= 0);
  const int64_t available = AvailableMemoryBytes();
  void* data = MAP_FAILED;
  if (num_bytes <= available) {
    data = mmap(nullptr, static_cast<size_t>(num_bytes == 0 ? 1 : num_bytes),
                PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "memory: ", num_bytes, " bytes (", HumanBytes(static_cast<double>(num_bytes)), ") needed, ",
        available, " bytes (", HumanBytes(static_cast<double>(available)), ") available"));
  }
  return std::unique_ptr<CpuBuffer>(new CpuBuffer(data, num_bytes));
}

int64_t CpuBuffer::resident_bytes() const {
  const int64_t page_bytes = PageBytes();
  constexpr int64_t kPagesAtOnce = 1 << 16;
  std::vector<unsigned char> pages;
  int64_t bytes = 0;
  for (int64_t begin = 0; begin < num_bytes_; begin += kPagesAtOnce * page_bytes) {
    const int64_t size = std::min(num_bytes_ - begin, kPagesAtOnce * page_bytes);
    pages.resize(static_cast<size_t>((size + page_bytes - 1) / page_bytes));
    if (mincore(static_cast<char*>(data_) + begin, static_cast<size_t>(size), pages.data()) != 0) {
      return num_bytes_;
    }
    bytes += page_bytes * std::count_if(pages.begin(), pages.end(),
                                        [](unsigned char page) { return (page & 1) != 0; });
  }
  return std::min(bytes, num_bytes_);
}

void CpuBuffer::Discard(int64_t offset, int64_t num_bytes) {
  US_CHECK(offset >= 0 && num_bytes >= 0 && num_bytes <= num_bytes_ - offset);
  const int64_t first = (offset + PageBytes() - 1) / PageBytes();
  // The last page is the buffer's alone, to its end.
  const int64_t end = offset + num_bytes == num_bytes_
                          ? (num_bytes_ + PageBytes() - 1) / PageBytes()
                          : (offset + num_bytes) / PageBytes();
  if (end <= first) return;
  // It can only fail for pages that are locked, which then stay.
  madvise(static_cast<char*>(data_) + first * PageBytes(),
          static_cast<size_t>((end - first) * PageBytes()), MADV_DONTNEED);
}

CpuBuffer::~CpuBuffer() { munmap(data_, static_cast<size_t>(num_bytes_ == 0 ? 1 : num_bytes_)); }

}  // namespace ultrasketch
