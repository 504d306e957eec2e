// How much memory this process may still take.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CPU_AVAILABLE_MEMORY_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CPU_AVAILABLE_MEMORY_H_

#include <cstdint>

namespace ultrasketch {

// The smaller of what the kernel calls available and what the control group (version 2) has left.
// The largest int64 when neither can be read.
int64_t AvailableMemoryBytes();

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CPU_AVAILABLE_MEMORY_H_
