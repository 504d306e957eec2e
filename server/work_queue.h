// Bounded queues of work with threads of their own, for what would hold up gRPC's event threads.
#ifndef ULTRASKETCH_SERVER_WORK_QUEUE_H_
#define ULTRASKETCH_SERVER_WORK_QUEUE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

#include "engine/serving/engine_loop/drain_rate.h"

namespace ultrasketch {

// Texts up to this size need no queue: about a millisecond of tokenizing.
inline constexpr size_t kShortTextBytes = 8192;

// Who goes first: work of a class begins only when none of a class before it waits.
enum class WorkClass : uint8_t {
  kGeneration,    // prompts on their way to an engine
  kTokenization,  // texts for their own sake; leaves one thread free for the class before it
};

struct WorkQueueOptions {
  int num_threads = 2;  // at least 2
  // What may wait, in each class.
  size_t max_waiting = 256;
  size_t max_waiting_bytes = size_t{64} << 20;
  // For tests: called when some work has joined its queue, and on the thread that is about to do
  // it.
  std::function<void()> after_add = nullptr;
  std::function<void()> before_work = nullptr;
};

// Thread-safe. Destruction runs what is queued and joins the threads.
class WorkQueue {
 public:
  explicit WorkQueue(const WorkQueueOptions& options);
  ~WorkQueue();
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  // Runs `work` on one of the threads, in order of arrival within its class. `num_bytes` is what it
  // holds in memory while it waits; `owner` names it for Take. RESOURCE_EXHAUSTED with when to try
  // again, and `work` does not run, when too much of its class waits already: kQueueFullReason or
  // kQueuedBytesFullReason. Work larger than all bytes that may wait is taken when nothing else
  // waits.
  absl::Status Add(WorkClass work_class, const void* owner, size_t num_bytes,
                   std::function<void()> work);

  // Takes the owner's work out of the queue again; null when it has begun, or there is none.
  std::function<void()> Take(const void* owner);

 private:
  static constexpr int kNumClasses = 2;

  struct Item {
    const void* owner = nullptr;
    size_t num_bytes = 0;
    std::function<void()> work;
  };
  struct ClassQueue {
    std::deque<Item> items;
    size_t num_bytes = 0;  // of the items
    int num_running = 0;
    DrainRate drain_rate;
    uint64_t num_refused = 0;
  };

  void ThreadMain();
  static absl::Duration NextRetryDelay(ClassQueue& queue);
  // The class whose first item may begin now; -1: none.
  int NextClass() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  bool HasNews() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  bool IsEmpty() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  const WorkQueueOptions options_;
  absl::Mutex mutex_;
  std::array<ClassQueue, kNumClasses> classes_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_WORK_QUEUE_H_
