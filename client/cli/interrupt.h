// Ctrl-C and SIGTERM as a stop token.
#ifndef ULTRASKETCH_CLIENT_CLI_INTERRUPT_H_
#define ULTRASKETCH_CLIENT_CLI_INTERRUPT_H_

#include <functional>
#include <stop_token>
#include <thread>

#include "absl/base/thread_annotations.h"

#include "engine/base/mutex.h"

namespace ultrasketch::cli {

// While it lives, the first SIGINT or SIGTERM requests a stop and the second ends the process at
// once. One at a time. A signal that the parent set to be ignored stays ignored.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  // Callbacks on it run on a thread of their own, not in a signal handler.
  std::stop_token stop() const { return source_.get_token(); }

  // From now on SIGINT requests no stop but calls `handler`, each time, on that thread; null: as
  // before. SIGTERM stays as it is. Returns when no call of the handler before is in progress.
  void HandleInterrupts(std::function<void()> handler) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Watch();

  std::stop_source source_;
  int interrupted_ = -1;  // eventfd: a signal came
  int finished_ = -1;     // eventfd: the guard is going away
  Mutex mutex_;
  std::function<void()> handler_ ABSL_GUARDED_BY(mutex_);
  std::thread watcher_;
};

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_INTERRUPT_H_
