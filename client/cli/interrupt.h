// Ctrl-C and SIGTERM as a stop token.
#ifndef ULTRASKETCH_CLIENT_CLI_INTERRUPT_H_
#define ULTRASKETCH_CLIENT_CLI_INTERRUPT_H_

#include <stop_token>
#include <thread>

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

 private:
  void Watch();

  std::stop_source source_;
  int interrupted_ = -1;  // eventfd: a signal came
  int finished_ = -1;     // eventfd: the guard is going away
  std::thread watcher_;
};

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_INTERRUPT_H_
