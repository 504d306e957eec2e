#include "engine/base/resident_memory.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "absl/cleanup/cleanup.h"

namespace ultrasketch {

int64_t ResidentBytes(const void* data, int64_t num_bytes) {
  if (num_bytes <= 0) return 0;
  const int64_t page_bytes = sysconf(_SC_PAGESIZE);
  const int descriptor = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return num_bytes;
  const absl::Cleanup close_file = [descriptor] { close(descriptor); };

  // An entry for each page of the address space: see proc(5).
  constexpr uint64_t kIsPresent = uint64_t{1} << 63;
  constexpr int64_t kEntryBytes = sizeof(uint64_t);
  std::array<uint64_t, 4096> entries;
  const auto begin = static_cast<int64_t>(reinterpret_cast<intptr_t>(data));
  const int64_t end = begin + num_bytes;
  const int64_t last_page = (end - 1) / page_bytes;
  int64_t resident = 0;
  for (int64_t page = begin / page_bytes; page <= last_page;) {
    const int64_t wanted = std::min<int64_t>(last_page - page + 1, entries.size());
    const ssize_t read = pread(descriptor, entries.data(),
                               static_cast<size_t>(wanted * kEntryBytes), page * kEntryBytes);
    if (read < kEntryBytes) return num_bytes;
    const int64_t count = read / kEntryBytes;
    for (int64_t i = 0; i < count; ++i) {
      if ((entries[static_cast<size_t>(i)] & kIsPresent) == 0) continue;
      const int64_t first = (page + i) * page_bytes;
      resident += std::min(end, first + page_bytes) - std::max(begin, first);
    }
    page += count;
  }
  return resident;
}

}  // namespace ultrasketch
