#include "engine/backends/cpu/available_memory.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

namespace ultrasketch {
namespace {

std::optional<int64_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  int64_t number = 0;
  if (file >> number) return number;
  return std::nullopt;  // absent, or "max"
}

// The number after `key` at the start of a line.
std::optional<int64_t> FindNumber(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string word;
  while (file >> word) {
    int64_t number = 0;
    if (word == key && file >> number) return number;
    file.clear();
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return std::nullopt;
}

}  // namespace

int64_t AvailableMemoryBytes() {
  int64_t available = std::numeric_limits<int64_t>::max();
  if (const std::optional<int64_t> kilobytes = FindNumber("/proc/meminfo", "MemAvailable:")) {
    available = *kilobytes * 1024;
  }
  const std::optional<int64_t> limit = ReadNumber("/sys/fs/cgroup/memory.max");
  const std::optional<int64_t> current = ReadNumber("/sys/fs/cgroup/memory.current");
  if (limit.has_value() && current.has_value()) {
    // Cached files, mapped weights among them, give way where memory is needed.
    const int64_t cached = FindNumber("/sys/fs/cgroup/memory.stat", "file").value_or(0);
    available = std::min(available, std::max<int64_t>(0, *limit - (*current - cached)));
  }
  return available;
}

int64_t ResidentMemoryBytes() {
  std::ifstream file("/proc/self/statm");
  int64_t size_pages = 0;
  int64_t resident_pages = 0;
  if (!(file >> size_pages >> resident_pages)) return 0;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

}  // namespace ultrasketch
