// Child processes for tests.
#ifndef ULTRASKETCH_TESTS_E2E_PROCESS_H_
#define ULTRASKETCH_TESTS_E2E_PROCESS_H_

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include <sys/types.h>

namespace ultrasketch {

// A running program, its output collected as it comes. Killed on destruction.
class Process {
 public:
  // `arguments[0]` is the program's path. Standard input is `input`.
  explicit Process(std::vector<std::string> arguments, const std::string& input = "");
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  void Signal(int signal_number);

  // Standard output and error so far.
  std::string out() const;
  std::string err() const;

  // Waits until `condition(out, err)` holds; false after `timeout` or when the program has ended
  // without it.
  bool WaitFor(const std::function<bool(const std::string&, const std::string&)>& condition,
               absl::Duration timeout);

  // The exit code, or 128 + the signal that ended it; -1 when it has not ended within `timeout`.
  // All output is there afterwards.
  int Wait(absl::Duration timeout);

 private:
  void Collect(int descriptor, std::string* text);

  pid_t pid_ = -1;
  int exit_code_ = -1;
  bool reaped_ = false;
  mutable absl::Mutex mutex_;
  std::string out_ ABSL_GUARDED_BY(mutex_);
  std::string err_ ABSL_GUARDED_BY(mutex_);
  int num_open_ ABSL_GUARDED_BY(mutex_) = 2;
  std::vector<std::thread> collectors_;
};

struct Completed {
  int exit_code = -1;
  std::string out;
  std::string err;
};

// Runs a program to its end, a minute at most.
Completed RunProgram(std::vector<std::string> arguments, const std::string& input = "");

// A folder that is removed with everything in it.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_E2E_PROCESS_H_
