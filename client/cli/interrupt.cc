#include "client/cli/interrupt.h"

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/signalfd.h>

#include "engine/base/check.h"

namespace ultrasketch::cli {
namespace {

sigset_t WatchedSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  return signals;
}

}  // namespace

InterruptGuard::InterruptGuard() {
  const sigset_t signals = WatchedSignals();
  US_CHECK(pthread_sigmask(SIG_BLOCK, &signals, nullptr) == 0);
  signals_ = signalfd(-1, &signals, SFD_CLOEXEC);
  finished_ = eventfd(0, EFD_CLOEXEC);
  US_CHECK(signals_ >= 0 && finished_ >= 0);
  watcher_ = std::thread([this] { Watch(); });
}

InterruptGuard::~InterruptGuard() {
  const uint64_t one = 1;
  US_CHECK(write(finished_, &one, sizeof(one)) == sizeof(one));
  watcher_.join();
  const sigset_t signals = WatchedSignals();
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  close(signals_);
  close(finished_);
}

void InterruptGuard::Watch() {
  while (true) {
    pollfd descriptors[] = {{signals_, POLLIN, 0}, {finished_, POLLIN, 0}};
    if (poll(descriptors, 2, -1) < 0) continue;
    if (descriptors[1].revents != 0) return;
    signalfd_siginfo info;
    if (read(signals_, &info, sizeof(info)) != sizeof(info)) continue;
    if (!source_.request_stop()) _exit(128 + static_cast<int>(info.ssi_signo));
  }
}

}  // namespace ultrasketch::cli
