// ultrasketchd: serves models over gRPC.

#include <string>
#include <utility>
#include <variant>

#include "absl/status/status.h"
#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>

#include "server/daemon.h"
#include "server/log.h"
#include "server/options.h"
#include "server/shutdown_signals.h"

namespace ultrasketch {
namespace {

// gRPC's own log, in our format.
void LogFromGrpc(gpr_log_func_args* args) {
  if (args->severity != GPR_LOG_SEVERITY_ERROR) return;
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
