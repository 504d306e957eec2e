// SIGTERM, SIGINT and, unless it is ignored, SIGHUP as calls on an ordinary thread.
#ifndef ULTRASKETCH_SERVER_SHUTDOWN_SIGNALS_H_
#define ULTRASKETCH_SERVER_SHUTDOWN_SIGNALS_H_

#include <functional>
#include <thread>

namespace ultrasketch {

class ShutdownSignals {
 public:
  // From now on the signals wait for a ShutdownSignals, and SIGPIPE is ignored. Before any other
  // thread starts: threads inherit the signal mask.
  static void Block();

  // `on_signal` is called for each signal, with how many there have been and which it is, on this
  // object's thread: it need not be async-signal-safe, and may call anything but the destructor.
  // After Block.
  explicit ShutdownSignals(std::function<void(int count, int signal)> on_signal);

  // Signals keep being blocked.
  ~ShutdownSignals();
  ShutdownSignals(const ShutdownSignals&) = delete;
  ShutdownSignals& operator=(const ShutdownSignals&) = delete;

 private:
  void ThreadMain();

  const std::function<void(int, int)> on_signal_;
  int signal_descriptor_ = -1;
  int stop_descriptor_ = -1;
  std::thread thread_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_SHUTDOWN_SIGNALS_H_
