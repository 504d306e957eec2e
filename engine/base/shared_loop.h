// Loops whose threads take their share as they go.
#ifndef ULTRASKETCH_ENGINE_BASE_SHARED_LOOP_H_
#define ULTRASKETCH_ENGINE_BASE_SHARED_LOOP_H_

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "engine/base/thread_pool.h"

namespace ultrasketch {

// Runs body(take) once on each thread of the pool that is needed. `take(&begin, &end)` gets the
// next range of [0, num_items), until it returns false: of `grain` items at least, of a sixteenth
// of a thread's share where that is more. For work that is the same whoever does it: a thread that
// shares its core with another process gets less of it, where ThreadPool::ParallelFor would wait.
template <typename Body>
void SharedLoop(ThreadPool& pool, int64_t num_items, int64_t grain, const Body& body) {
  constexpr int64_t kRangesPerThread = 16;
  const int64_t num_threads = pool.num_threads();
  const int64_t least = std::max<int64_t>(grain, 1);
  const int64_t num_grains = (num_items + least - 1) / least;
  const int64_t size = least * std::max<int64_t>(num_grains / (kRangesPerThread * num_threads), 1);
  std::atomic<int64_t> next{0};
  const auto take = [&](int64_t* begin, int64_t* end) {
    *begin = next.fetch_add(size, std::memory_order_relaxed);
    *end = std::min(*begin + size, num_items);
    return *begin < num_items;
  };
  pool.ParallelFor(std::min(num_threads, num_grains), 1,
                   [&](int64_t first, int64_t last, int /*thread*/) {
                     if (first < last) body(take);
                   });
}

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BASE_SHARED_LOOP_H_
