#include "engine/base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <optional>

#include "engine/base/cpu_quota.h"
#include "engine/base/thread_name.h"

namespace ultrasketch {
namespace {

// About 20 microseconds: the gap between two loops of one step is shorter.
constexpr int kSpinsBeforeSleep = 400;

inline void CpuRelax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

int AvailableCpus() {
  cpu_set_t set;
  // Fails where the mask is larger than cpu_set_t: beyond 1024 CPUs.
  const bool has_mask = sched_getaffinity(0, sizeof(set), &set) == 0;
  const int count =
      has_mask ? CPU_COUNT(&set) : static_cast<int>(std::thread::hardware_concurrency());
  const std::optional<int> quota = CpuQuota("/proc/self/cgroup", "/sys/fs/cgroup");
  return std::max(1, std::min(count, quota.value_or(count)));
}

ThreadPool::ThreadPool(int num_threads) {
  const int count = num_threads > 0 ? num_threads : AvailableCpus();
  workers_.reserve(static_cast<size_t>(count - 1));
  for (int thread = 1; thread < count; ++thread) {
    workers_.emplace_back([this, thread] { WorkerMain(thread); });
  }
}

ThreadPool::~ThreadPool() {
  {
    MutexLock lock(sleep_mutex_);
    stopping_.store(true);
  }
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::RunShare(const Loop& loop, int thread) {
  // Divided first: the products and sums below then stay within num_items.
  if (thread > (loop.num_items - 1) / loop.items_per_thread) return;
  const int64_t begin = thread * loop.items_per_thread;
  const int64_t count = std::min(loop.num_items - begin, loop.items_per_thread);
  (*loop.body)(begin, begin + count, thread);
}

void ThreadPool::ParallelFor(int64_t num_items, int64_t grain, Body body) {
  if (num_items <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t num_grains = (num_items - 1) / grain + 1;
  MutexLock lock(loop_mutex_);
  if (workers_.empty() || num_grains == 1) {
    body(0, num_items, 0);
    return;
  }
  const int64_t grains_per_thread = (num_grains - 1) / num_threads() + 1;
  loop_ = {&body, num_items, grains_per_thread * grain};
  num_running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  {
    // Under the mutex, so that a worker about to sleep either sees the new generation or is woken
    // as the mutex is released.
    MutexLock sleep_lock(sleep_mutex_);
    generation_.fetch_add(1, std::memory_order_release);
  }
  RunShare(loop_, 0);
  for (int spins = 0; num_running_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < 10000) {
      CpuRelax();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::WorkerMain(int thread) {
  NameThisThread("engine_worker");
  uint64_t seen = 0;
  while (true) {
    int spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen) {
      if (stopping_.load(std::memory_order_relaxed)) return;
      if (++spins < kSpinsBeforeSleep) {
        CpuRelax();
        continue;
      }
      MutexLock lock(sleep_mutex_);
      sleep_mutex_.Await([this, seen] {
        return generation_.load(std::memory_order_acquire) != seen || stopping_.load();
      });
    }
    ++seen;
    RunShare(loop_, thread);
    num_running_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace ultrasketch
