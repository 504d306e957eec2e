// Pages of mapped files that are not needed any more.
#ifndef ULTRASKETCH_ENGINE_BASE_MAPPED_PAGES_H_
#define ULTRASKETCH_ENGINE_BASE_MAPPED_PAGES_H_

#include <cstdint>

namespace ultrasketch {

// Takes the pages that lie wholly in [data, data + num_bytes) out of this process's memory if that
// is part of a guarded mapping of a file (mapping_guard.h): they come back with the next read. For
// what was copied out of the file. Other memory is left alone. The mapping must stay meanwhile.
void ReleaseMappedPages(const void* data, int64_t num_bytes);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BASE_MAPPED_PAGES_H_
