// Which memory is really there.
#ifndef ULTRASKETCH_ENGINE_BASE_RESIDENT_MEMORY_H_
#define ULTRASKETCH_ENGINE_BASE_RESIDENT_MEMORY_H_

#include <cstdint>

namespace ultrasketch {

// Bytes of [data, data + num_bytes) whose pages this process has in memory. Pages of a mapped file
// count from their first use by this process on, those of its own memory from the first write on,
// until the system takes them away. num_bytes when the system does not tell (/proc/self/pagemap).
int64_t ResidentBytes(const void* data, int64_t num_bytes);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BASE_RESIDENT_MEMORY_H_
