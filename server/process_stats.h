// What the operating system says of this process.
#ifndef ULTRASKETCH_SERVER_PROCESS_STATS_H_
#define ULTRASKETCH_SERVER_PROCESS_STATS_H_

#include <cstdint>

namespace ultrasketch {

struct ProcessStats {
  int64_t resident_bytes = 0;
  int64_t virtual_bytes = 0;
  double cpu_seconds = 0;         // user and system, all threads
  double start_time_seconds = 0;  // since the epoch
  int64_t num_open_files = 0;
  int64_t max_open_files = 0;
  int64_t num_threads = 0;
};

// Reads /proc/self. What cannot be read is 0.
ProcessStats ReadProcessStats();

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_PROCESS_STATS_H_
