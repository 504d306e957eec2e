// ultrasketchd: serves models over gRPC.

#include <atomic>
#include <cstdint>
#include <string>
#include <utility>
#include <variant>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>

#include "server/daemon.h"
#include "server/log.h"
#include "server/options.h"
#include "server/shutdown_signals.h"

namespace ultrasketch {
namespace {

// gRPC's own log, in our format. Clients cause some of its lines, as by handshakes that fail: not
// more than ten a second.
void LogFromGrpc(gpr_log_func_args* args) {
  if (args->severity != GPR_LOG_SEVERITY_ERROR) return;
  constexpr int64_t kIntervalNanoseconds = 100'000'000;
  static std::atomic<int64_t> next_line = 0;
  const int64_t now = absl::GetCurrentTimeNanos();
  int64_t next = next_line;
  if (now < next || !next_line.compare_exchange_strong(next, now + kIntervalNanoseconds)) return;
  LogEvent(LogLevel::kWarning, "grpc", {{"message", args->message}});
}

// What peers send that is no UTF-8 or no message is answered, and not worth a line each.
void IgnoreFromProtobuf(google::protobuf::LogLevel level, const char*, int,
                        const std::string& message) {
  if (level == google::protobuf::LOGLEVEL_FATAL) {
    LogEvent(LogLevel::kError, "protobuf", {{"message", message}});
  }
}

int Main(int argc, char** argv) {
  // Debian's Abseil looks for deadlocks, under one lock for all threads, whenever a mutex is taken
  // while another is held.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  auto parsed = ParseDaemonOptions(argc, argv);
  if (const ExitCode* exit_code = std::get_if<ExitCode>(&parsed)) return *exit_code;
  SetLogFormat(std::get<DaemonOptions>(parsed).log_format);
  gpr_set_log_function(LogFromGrpc);
  google::protobuf::SetLogHandler(IgnoreFromProtobuf);
  ShutdownSignals::Block();
  if (const absl::Status status = RunDaemon(std::get<DaemonOptions>(std::move(parsed)));
      !status.ok()) {
    LogEvent(LogLevel::kError, "failed", {{"error", status.ToString()}});
    return kExitFailed;
  }
  return kExitOk;
}

}  // namespace
}  // namespace ultrasketch

int main(int argc, char** argv) { return ultrasketch::Main(argc, argv); }
