#include "engine/base/large_vector.h"

#include <cstdint>

#include <sys/mman.h>

namespace ultrasketch {

void AdviseHugePages(void* data, size_t num_bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  const uintptr_t last = (begin + num_bytes) / kHugePageBytes * kHugePageBytes;
  // It only fails where the system has no huge pages.
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

}  // namespace ultrasketch
