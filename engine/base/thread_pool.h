// A fixed set of worker threads for data-parallel loops.
#ifndef ULTRASKETCH_ENGINE_BASE_THREAD_POOL_H_
#define ULTRASKETCH_ENGINE_BASE_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

#include "engine/base/mutex.h"

namespace ultrasketch {

// How many CPUs this process may use: those of its affinity mask, or fewer where its container has
// less processor time than that (spinning threads beyond the quota would only be stopped). At least
// 1.
int AvailableCpus();

// Runs loops over `num_threads` threads, the calling one included. One loop at
// a time: ParallelFor may be called from any thread but not from inside a
// loop's body, and concurrent calls wait for each other. Workers spin for some
// microseconds after a loop, so that the next one starts quickly, and then
// sleep.
class ThreadPool {
 public:
  // 0 means AvailableCpus().
  explicit ThreadPool(int num_threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end, thread) on disjoint ranges that cover [0,
  // num_items); begin is a multiple of `grain`. `thread` is in [0,
  // num_threads()) and no two calls with the same value overlap in time: use it
  // to index scratch memory. Returns when all is done. Which thread gets which
  // range is fixed by num_items, grain and num_threads().
  void ParallelFor(int64_t num_items, int64_t grain,
                   absl::FunctionRef<void(int64_t begin, int64_t end, int thread)> body);

 private:
  using Body = absl::FunctionRef<void(int64_t, int64_t, int)>;
  struct Loop {
    const Body* body;
    int64_t num_items;
    int64_t items_per_thread;
  };

  void WorkerMain(int thread);
  static void RunShare(const Loop& loop, int thread);

  Mutex loop_mutex_;  // held for the length of a loop: one at a time
  Loop loop_ = {};    // published by the increment of generation_
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> num_running_{0};
  std::atomic<bool> stopping_{false};

  // Workers wait on it for generation_ to advance.
  Mutex sleep_mutex_;

  std::vector<std::thread> workers_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BASE_THREAD_POOL_H_
