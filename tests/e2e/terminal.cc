#include "tests/e2e/terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <unistd.h>

#include <array>

#include "absl/time/clock.h"
#include <gtest/gtest.h>
#include <sys/wait.h>

#include "engine/base/check.h"

extern char** environ;

namespace ultrasketch {
namespace {

constexpr absl::Duration kPatience = absl::Minutes(1);

}  // namespace

Terminal::Terminal(std::vector<std::string> arguments) {
  terminal_ = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  US_CHECK(terminal_ >= 0 && grantpt(terminal_) == 0 && unlockpt(terminal_) == 0);
  std::array<char, 128> name;
  US_CHECK(ptsname_r(terminal_, name.data(), name.size()) == 0);

  // The first terminal that the leader of a session opens is the session's.
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, name.data(), O_RDWR, 0);
  posix_spawn_file_actions_adddup2(&actions, STDIN_FILENO, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, STDIN_FILENO, STDERR_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t signals;
  sigfillset(&signals);
  posix_spawnattr_setsigdefault(&attributes, &signals);
  sigemptyset(&signals);
  posix_spawnattr_setsigmask(&attributes, &signals);
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  US_CHECK(posix_spawn(&pid_, argv[0], &actions, &attributes, argv.data(), environ) == 0);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  collector_ = std::thread([this] { Collect(); });
}

Terminal::~Terminal() {
  if (!is_reaped_) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  collector_.join();
  close(terminal_);
}

void Terminal::Type(const std::string& text) {
  US_CHECK(write(terminal_, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
}

std::string Terminal::screen() const {
  absl::MutexLock lock(&mutex_);
  return screen_;
}

void Terminal::Await(const std::string& text) {
  absl::MutexLock lock(&mutex_);
  size_t position = std::string::npos;
  const auto is_found = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    position = screen_.find(text, found_);
    return position != std::string::npos || is_closed_;
  };
  mutex_.AwaitWithTimeout(absl::Condition(&is_found), kPatience);
  if (position == std::string::npos) {
    ADD_FAILURE() << "not on the screen: " << text << "\n" << screen_;
  } else {
    found_ = position + text.size();
  }
}

int Terminal::Wait() {
  const absl::Time deadline = absl::Now() + kPatience;
  int status = 0;
  while (waitpid(pid_, &status, WNOHANG) != pid_) {
    if (absl::Now() > deadline) return -1;
    absl::SleepFor(absl::Milliseconds(2));
  }
  is_reaped_ = true;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void Terminal::Collect() {
  std::array<char, 4096> buffer;
  while (true) {
    // EIO once no process has the terminal open.
    const ssize_t count = read(terminal_, buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    absl::MutexLock lock(&mutex_);
    if (count <= 0) {
      is_closed_ = true;
      return;
    }
    screen_.append(buffer.data(), static_cast<size_t>(count));
  }
}

}  // namespace ultrasketch
