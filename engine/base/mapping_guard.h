// Living on when a mapped file is cut short.
#ifndef ULTRASKETCH_ENGINE_BASE_MAPPING_GUARD_H_
#define ULTRASKETCH_ENGINE_BASE_MAPPING_GUARD_H_

#include <cstdint>

namespace ultrasketch {

// A read beyond the end that a mapped file has now is a SIGBUS, which ends the process. After this
// call, and for the rest of the process, such a read of a guarded mapping (MappedFile's are) finds
// zeros, and the mapping counts as damaged: what is computed from it is worth nothing, but whoever
// has nothing to do with it goes on. Other faults do what they did before. Call once, before there
// are threads.
void GuardMappings();

// A descriptor that can be read from (a number, see eventfd(2)) when mappings were damaged since
// the last read. -1 before GuardMappings.
int DamagedMappingsDescriptor();

// A mapping's entry among those that GuardMappings looks after, while it lives: destroy it before
// the mapping. Thread-safe.
class MappingGuard {
 public:
  // [data, data + num_bytes) begins on a page.
  MappingGuard(const void* data, int64_t num_bytes);
  ~MappingGuard();
  MappingGuard(const MappingGuard&) = delete;
  MappingGuard& operator=(const MappingGuard&) = delete;

  bool is_damaged() const;

  struct Entry;

 private:
  Entry* const entry_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BASE_MAPPING_GUARD_H_
