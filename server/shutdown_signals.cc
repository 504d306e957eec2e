#include "server/shutdown_signals.h"

#include <poll.h>
#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <utility>

#include <sys/eventfd.h>
#include <sys/signalfd.h>

#include "engine/base/check.h"

namespace ultrasketch {

namespace {

sigset_t Signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  // A terminal that was closed. Who starts the server with nohup has it ignored.
  struct sigaction hangup = {};
  if (sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler != SIG_IGN) {
    sigaddset(&signals, SIGHUP);
  }
  return signals;
}

}  // namespace

void ShutdownSignals::Block() {
  const sigset_t signals = Signals();
  US_CHECK(pthread_sigmask(SIG_BLOCK, &signals, nullptr) == 0);
  std::signal(SIGPIPE, SIG_IGN);
}

ShutdownSignals::ShutdownSignals(std::function<void(int, int)> on_signal)
    : on_signal_(std::move(on_signal)) {
  const sigset_t signals = Signals();
  signal_descriptor_ = signalfd(-1, &signals, SFD_CLOEXEC);
  stop_descriptor_ = eventfd(0, EFD_CLOEXEC);
  US_CHECK(signal_descriptor_ >= 0 && stop_descriptor_ >= 0);
  thread_ = std::thread([this] { ThreadMain(); });
}

ShutdownSignals::~ShutdownSignals() {
  const uint64_t one = 1;
  US_CHECK(write(stop_descriptor_, &one, sizeof(one)) == sizeof(one));
  thread_.join();
  close(signal_descriptor_);
  close(stop_descriptor_);
}

void ShutdownSignals::ThreadMain() {
  int count = 0;
  while (true) {
    pollfd events[] = {{signal_descriptor_, POLLIN, 0}, {stop_descriptor_, POLLIN, 0}};
    if (poll(events, 2, -1) < 0) continue;
    if (events[1].revents != 0) return;
    signalfd_siginfo info = {};
    if (read(signal_descriptor_, &info, sizeof(info)) != sizeof(info)) continue;
    on_signal_(++count, static_cast<int>(info.ssi_signo));
  }
}

}  // namespace ultrasketch
