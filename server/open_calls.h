// How many calls there are, and waiting for the last.
#ifndef ULTRASKETCH_SERVER_OPEN_CALLS_H_
#define ULTRASKETCH_SERVER_OPEN_CALLS_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace ultrasketch {

// Thread-safe.
class OpenCalls {
 public:
  void Add() {
    absl::MutexLock lock(&mutex_);
    ++count_;
  }
  void Remove() {
    absl::MutexLock lock(&mutex_);
    --count_;
  }
  // False when the deadline came first.
  bool AwaitNone(absl::Time deadline) {
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithDeadline(absl::Condition(this, &OpenCalls::IsNone), deadline);
  }

 private:
  bool IsNone() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return count_ == 0; }

  absl::Mutex mutex_;
  int64_t count_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_OPEN_CALLS_H_
