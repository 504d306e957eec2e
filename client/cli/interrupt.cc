#include "client/cli/interrupt.h"

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <utility>

#include <sys/eventfd.h>

#include "engine/base/check.h"

namespace ultrasketch::cli {
namespace {

constexpr int kWatchedSignals[] = {SIGINT, SIGTERM};

// What the handler writes to. A handler and not a blocked signal with a signalfd: libraries have
// threads of their own from before main, whose signal masks are not ours to set.
std::atomic<int> interrupted_event = -1;
std::atomic<int> last_signal = 0;
std::atomic<int> num_interrupts = 0;    // SIGINT, not yet acted on
std::atomic<int> num_terminations = 0;  // SIGTERM

void OnSignal(int signal) {
  const int saved_errno = errno;
  last_signal.store(signal);
  ++(signal == SIGINT ? num_interrupts : num_terminations);
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(interrupted_event.load(), &one, sizeof(one));
  errno = saved_errno;
}

void SetHandler(void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  for (const int signal : kWatchedSignals) {
    struct sigaction before = {};
    US_CHECK(sigaction(signal, nullptr, &before) == 0);
    if (before.sa_handler == SIG_IGN) continue;
    US_CHECK(sigaction(signal, &action, nullptr) == 0);
  }
}

}  // namespace

InterruptGuard::InterruptGuard() {
  interrupted_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  finished_ = eventfd(0, EFD_CLOEXEC);
  US_CHECK(interrupted_ >= 0 && finished_ >= 0);
  US_CHECK(interrupted_event.exchange(interrupted_) == -1);
  num_interrupts = 0;
  num_terminations = 0;
  SetHandler(OnSignal);
  watcher_ = std::thread([this] { Watch(); });
}

InterruptGuard::~InterruptGuard() {
  const uint64_t one = 1;
  US_CHECK(write(finished_, &one, sizeof(one)) == sizeof(one));
  watcher_.join();
  SetHandler(SIG_DFL);
  interrupted_event.store(-1);
  close(interrupted_);
  close(finished_);
}

void InterruptGuard::Watch() {
  while (true) {
    pollfd descriptors[] = {{interrupted_, POLLIN, 0}, {finished_, POLLIN, 0}};
    if (poll(descriptors, 2, -1) < 0) continue;
    if (descriptors[1].revents != 0) return;
    uint64_t count = 0;
    if (read(interrupted_, &count, sizeof(count)) != sizeof(count)) continue;
    int stops = num_terminations.exchange(0);
    {
      MutexLock lock(mutex_);
      for (int interrupts = num_interrupts.exchange(0); interrupts > 0; --interrupts) {
        if (handler_ != nullptr) {
          handler_();
        } else {
          ++stops;
        }
      }
    }
    // The second one does not wait.
    if (stops > 0 && (!source_.request_stop() || stops > 1)) _exit(128 + last_signal.load());
  }
}

void InterruptGuard::HandleInterrupts(std::function<void()> handler) {
  MutexLock lock(mutex_);
  handler_ = std::move(handler);
}

}  // namespace ultrasketch::cli
