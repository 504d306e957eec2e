// A bounded queue of work with threads of its own, for what would hold up gRPC's event threads.
#ifndef ULTRASKETCH_SERVER_WORK_QUEUE_H_
#define ULTRASKETCH_SERVER_WORK_QUEUE_H_

#include <cstddef>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace ultrasketch {

// Thread-safe. Destruction runs what is queued and joins the threads.
class WorkQueue {
 public:
  WorkQueue(int num_threads, size_t max_queued);
  ~WorkQueue();
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  // Runs `work` on one of the threads, in order of arrival. False, without running it, when
  // `max_queued` pieces of work wait already.
  [[nodiscard]] bool TryAdd(std::function<void()> work);

 private:
  void ThreadMain();
  bool HasNews() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return stopping_ || !queue_.empty(); }

  const size_t max_queued_;
  absl::Mutex mutex_;
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_WORK_QUEUE_H_
