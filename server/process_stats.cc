#include "server/process_stats.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <system_error>
#include <vector>

#include <sys/resource.h>

namespace ultrasketch {
namespace {

// Indices into the fields of /proc/self/stat after the command's closing parenthesis: see proc(5),
// where the first of them is field 3.
enum StatField : size_t {
  kUserTicks = 11,
  kSystemTicks = 12,
  kNumThreads = 17,
  kStartTicks = 19,
  kVirtualBytes = 20,
  kResidentPages = 21,
  kNumFields = 22,
};

std::string ReadFile(const char* path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<double> ReadStatFields() {
  const std::string stat = ReadFile("/proc/self/stat");
  const size_t end_of_command = stat.rfind(')');
  std::vector<double> fields(kNumFields, 0);
  if (end_of_command == std::string::npos) return fields;
  std::istringstream stream(stat.substr(end_of_command + 1));
  std::string state;
  stream >> state;
  for (size_t i = 1; i < kNumFields; ++i) stream >> fields[i];
  return fields;
}

double BootTimeSeconds() {
  std::istringstream stream(ReadFile("/proc/stat"));
  std::string line;
  while (std::getline(stream, line)) {
    if (line.rfind("btime ", 0) == 0) return std::strtod(line.c_str() + 6, nullptr);
  }
  return 0;
}

int64_t NumOpenFiles() {
  std::error_code error;
  int64_t count = 0;
  for (auto entry = std::filesystem::directory_iterator("/proc/self/fd", error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    ++count;
  }
  return count > 0 ? count - 1 : 0;  // less the one that lists them
}

}  // namespace

ProcessStats ReadProcessStats() {
  static const double boot_time_seconds = BootTimeSeconds();
  const std::vector<double> fields = ReadStatFields();
  const double ticks_per_second = static_cast<double>(sysconf(_SC_CLK_TCK));
  ProcessStats stats;
  stats.cpu_seconds = (fields[kUserTicks] + fields[kSystemTicks]) / ticks_per_second;
  stats.start_time_seconds = boot_time_seconds + fields[kStartTicks] / ticks_per_second;
  stats.num_threads = static_cast<int64_t>(fields[kNumThreads]);
  stats.virtual_bytes = static_cast<int64_t>(fields[kVirtualBytes]);
  stats.resident_bytes = static_cast<int64_t>(fields[kResidentPages]) * sysconf(_SC_PAGESIZE);
  stats.num_open_files = NumOpenFiles();
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    stats.max_open_files = static_cast<int64_t>(limit.rlim_cur);
  }
  return stats;
}

}  // namespace ultrasketch
