// How much memory this process has, and how much it may still take.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CPU_AVAILABLE_MEMORY_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CPU_AVAILABLE_MEMORY_H_

#include <cstdint>

namespace ultrasketch {

// The smaller of what the kernel calls available and what the control group (version 2) has left.
// The largest int64 when neither can be read.
int64_t AvailableMemoryBytes();

// Bytes of this process that are in memory, files that it has mapped among them; 0 when that cannot
// be read.
int64_t ResidentMemoryBytes();

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CPU_AVAILABLE_MEMORY_H_
