// Memory beside pages that nobody may touch: an access out of bounds ends the test.
#ifndef ULTRASKETCH_TESTS_BASE_GUARDED_BUFFER_H_
#define ULTRASKETCH_TESTS_BASE_GUARDED_BUFFER_H_

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include <sys/mman.h>

namespace ultrasketch {

enum class GuardSide { kBegin, kEnd };

// `size` elements that begin right after a forbidden page, or end right before one. Begun as zeros.
template <typename T>
class GuardedBuffer {
 public:
  explicit GuardedBuffer(int64_t size, GuardSide side = GuardSide::kEnd) : size_(size) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    const int64_t bytes = size * static_cast<int64_t>(sizeof(T));
    const int64_t inner = (bytes + page - 1) / page * page;
    mapped_bytes_ = static_cast<size_t>(inner + 2 * page);
    void* mapped = mmap(nullptr, mapped_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) std::abort();
    mapped_ = static_cast<uint8_t*>(mapped);
    if (inner > 0 &&
        mprotect(mapped_ + page, static_cast<size_t>(inner), PROT_READ | PROT_WRITE) != 0) {
      std::abort();
    }
    data_ = reinterpret_cast<T*>(mapped_ + page + (side == GuardSide::kEnd ? inner - bytes : 0));
  }
  explicit GuardedBuffer(const std::vector<T>& values, GuardSide side = GuardSide::kEnd)
      : GuardedBuffer(static_cast<int64_t>(values.size()), side) {
    std::copy(values.begin(), values.end(), data_);
  }
  ~GuardedBuffer() { munmap(mapped_, mapped_bytes_); }
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_[i]; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }

 private:
  int64_t size_;
  uint8_t* mapped_;
  size_t mapped_bytes_;
  T* data_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_BASE_GUARDED_BUFFER_H_
