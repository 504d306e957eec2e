#include "tests/e2e/process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <unistd.h>

#include <filesystem>

#include "absl/time/clock.h"
#include <sys/mman.h>
#include <sys/wait.h>

#include "engine/base/check.h"

extern char** environ;

namespace ultrasketch {

Process::Process(std::vector<std::string> arguments, const std::string& input) {
  const int stdin_file = memfd_create("stdin", MFD_CLOEXEC);
  US_CHECK(stdin_file >= 0);
  for (size_t done = 0; done < input.size();) {
    const ssize_t count = write(stdin_file, input.data() + done, input.size() - done);
    US_CHECK(count > 0);
    done += static_cast<size_t>(count);
  }
  US_CHECK(lseek(stdin_file, 0, SEEK_SET) == 0);
  int out_pipe[2];
  int err_pipe[2];
  US_CHECK(pipe2(out_pipe, O_CLOEXEC) == 0);
  US_CHECK(pipe2(err_pipe, O_CLOEXEC) == 0);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, stdin_file, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, out_pipe[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, err_pipe[1], STDERR_FILENO);
  // Whatever this process was started with: `command &` in a script ignores SIGINT.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t signals;
  sigfillset(&signals);
  posix_spawnattr_setsigdefault(&attributes, &signals);
  sigemptyset(&signals);
  posix_spawnattr_setsigmask(&attributes, &signals);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);

  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const int error = posix_spawn(&pid_, argv[0], &actions, &attributes, argv.data(), environ);
  US_CHECK(error == 0);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  close(stdin_file);
  close(out_pipe[1]);
  close(err_pipe[1]);
  collectors_.emplace_back([this, fd = out_pipe[0]] { Collect(fd, &out_); });
  collectors_.emplace_back([this, fd = err_pipe[0]] { Collect(fd, &err_); });
}

Process::~Process() {
  if (!reaped_) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  for (std::thread& collector : collectors_) {
    if (collector.joinable()) collector.join();
  }
}

void Process::Signal(int signal_number) {
  if (!reaped_) kill(pid_, signal_number);
}

std::string Process::out() const {
  absl::MutexLock lock(&mutex_);
  return out_;
}

std::string Process::err() const {
  absl::MutexLock lock(&mutex_);
  return err_;
}

void Process::Collect(int descriptor, std::string* text) {
  std::vector<char> buffer(1 << 16);
  while (true) {
    const ssize_t count = read(descriptor, buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    absl::MutexLock lock(&mutex_);
    if (count <= 0) {
      --num_open_;
      break;
    }
    text->append(buffer.data(), static_cast<size_t>(count));
  }
  close(descriptor);
}

bool Process::WaitFor(const std::function<bool(const std::string&, const std::string&)>& condition,
                      absl::Duration timeout) {
  bool holds = false;
  absl::MutexLock lock(&mutex_);
  const auto done = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    holds = condition(out_, err_);
    return holds || num_open_ == 0;
  };
  mutex_.AwaitWithTimeout(absl::Condition(&done), timeout);
  return holds;
}

int Process::Wait(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!reaped_) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      reaped_ = true;
      exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      for (std::thread& collector : collectors_) collector.join();
    } else if (absl::Now() > deadline) {
      return -1;
    } else {
      absl::SleepFor(absl::Milliseconds(2));
    }
  }
  return exit_code_;
}

Completed RunProgram(std::vector<std::string> arguments, const std::string& input) {
  Process process(std::move(arguments), input);
  const int exit_code = process.Wait(absl::Minutes(1));
  return {exit_code, process.out(), process.err()};
}

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "ultrasketch-XXXXXX").string();
  US_CHECK(mkdtemp(pattern.data()) != nullptr);
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

}  // namespace ultrasketch
