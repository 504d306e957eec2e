// How much processor time was used.
#ifndef ULTRASKETCH_ENGINE_BASE_CPU_TIME_H_
#define ULTRASKETCH_ENGINE_BASE_CPU_TIME_H_

#include <time.h>

namespace ultrasketch {

inline double ClockSeconds(clockid_t clock) {
  timespec time = {};
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Since the start of the calling thread, of the process: seconds, of all processors together.
inline double ThreadCpuSeconds() { return ClockSeconds(CLOCK_THREAD_CPUTIME_ID); }
inline double ProcessCpuSeconds() { return ClockSeconds(CLOCK_PROCESS_CPUTIME_ID); }

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BASE_CPU_TIME_H_
