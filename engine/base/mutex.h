// absl::Mutex as ThreadSanitizer can see it. Distributions build Abseil without the sanitizer's
// annotations, so that it takes every access under an absl::Mutex for a race; this wrapper tells it
// who waits for whom. Without the sanitizer it is an absl::Mutex and nothing more.
#ifndef ULTRASKETCH_ENGINE_BASE_MUTEX_H_
#define ULTRASKETCH_ENGINE_BASE_MUTEX_H_

#include "absl/base/config.h"
#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#ifdef ABSL_HAVE_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>
#endif

namespace ultrasketch {

class ABSL_LOCKABLE Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() {
    mutex_.Lock();
    Acquired();
  }

  void Unlock() ABSL_UNLOCK_FUNCTION() {
    Releasing();
    mutex_.Unlock();
  }

  // Releases the mutex until `condition()`, a bool, is true, and holds it again on return. The
  // condition is evaluated with the mutex held, also by other threads when they unlock it.
  template <typename Condition>
  void Await(const Condition& condition)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(this) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    AwaitUntil(condition, absl::InfiniteFuture());
  }

  // The same, but returns at the deadline at the latest; then the condition's value.
  template <typename Condition>
  bool AwaitUntil(const Condition& condition, absl::Time deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(this) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    const auto evaluate = [this, &condition]() ABSL_NO_THREAD_SAFETY_ANALYSIS -> bool {
      Acquired();
      const bool is_true = condition();
      Releasing();
      return is_true;
    };
    Releasing();
    const bool is_true = mutex_.AwaitWithDeadline(absl::Condition(&evaluate), deadline);
    Acquired();
    return is_true;
  }

 private:
#ifdef ABSL_HAVE_THREAD_SANITIZER
  void Acquired() { __tsan_acquire(this); }
  void Releasing() { __tsan_release(this); }
#else
  void Acquired() {}
  void Releasing() {}
#endif

  absl::Mutex mutex_;
};

// Holds a mutex for the length of a scope.
class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex) : mutex_(mutex) {
    mutex_.Lock();
  }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mutex_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BASE_MUTEX_H_
