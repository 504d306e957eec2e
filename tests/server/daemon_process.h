// The executable `ultrasketchd` as a child process.
#ifndef ULTRASKETCH_TESTS_SERVER_DAEMON_PROCESS_H_
#define ULTRASKETCH_TESTS_SERVER_DAEMON_PROCESS_H_

#include <memory>
#include <string>
#include <vector>

#include <sys/types.h>

#include "ultrasketch/v1/generation.grpc.pb.h"

namespace ultrasketch {

// A running ultrasketchd. Killed, if it still runs, and waited for on destruction.
class Daemon {
 public:
  // Addresses are added: free ports. `max_open_files`, when it is not 0, is the hard limit of the
  // process.
  explicit Daemon(std::vector<std::string> arguments, bool pick_ports = true,
                  int max_open_files = 0);
  ~Daemon();
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  // Reads standard error up to a line that contains `text`, and returns that line; "" when the
  // process ended without one.
  std::string AwaitLine(const std::string& text);

  // The exit code, or minus the signal that killed the process.
  int Wait();

  // Reads standard error to its end, and waits.
  int WaitForEnd();

  void Signal(int signal);

  // Waits until it serves.
  void AwaitServing();

  static std::string ValueOf(const std::string& line, const std::string& key);

  const std::string& output() const { return output_; }
  const std::string& listen() const { return listen_; }
  int metrics_port() const { return metrics_port_; }
  v1::GenerationService::Stub& stub() { return *stub_; }

 private:
  pid_t process_ = 0;
  int stderr_ = -1;
  std::string output_;
  std::string listen_;
  int metrics_port_ = 0;
  std::unique_ptr<v1::GenerationService::Stub> stub_;
};

// Expects a daemon that does not come up: what it says and exits with.
void ExpectFailure(std::vector<std::string> arguments, int exit_code, const std::string& message,
                   bool pick_ports = true);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_SERVER_DAEMON_PROCESS_H_
