// A program on a terminal of its own.
#ifndef ULTRASKETCH_TESTS_E2E_TERMINAL_H_
#define ULTRASKETCH_TESTS_E2E_TERMINAL_H_

#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include <sys/types.h>

namespace ultrasketch {

// What the program writes to standard output and error is on the screen, as is what is typed.
// Ctrl-C and Ctrl-D are typed as "\x03" and "\x04". Killed on destruction.
class Terminal {
 public:
  explicit Terminal(std::vector<std::string> arguments);
  ~Terminal();
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  void Type(const std::string& text);
  std::string screen() const;

  // Waits until `text` is on the screen, behind what earlier calls have found; fails the test when
  // it does not come.
  void Await(const std::string& text);

  // The exit code, or 128 + the signal that ended it; -1 when it has not ended within a minute.
  int Wait();

 private:
  void Collect();

  int terminal_ = -1;
  pid_t pid_ = -1;
  bool is_reaped_ = false;
  mutable absl::Mutex mutex_;
  std::string screen_ ABSL_GUARDED_BY(mutex_);
  size_t found_ ABSL_GUARDED_BY(mutex_) = 0;
  bool is_closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread collector_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_E2E_TERMINAL_H_
