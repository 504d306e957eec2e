// What ultrasketchd is asked to do: its command line and its configuration file.
#ifndef ULTRASKETCH_SERVER_OPTIONS_H_
#define ULTRASKETCH_SERVER_OPTIONS_H_

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/time/time.h"

#include "server/listen_address.h"
#include "server/log.h"
#include "server/model_loader.h"
#include "server/model_repository.h"
#include "server/server.h"
#include "server/transport_credentials.h"

namespace ultrasketch {

enum ExitCode : int { kExitOk = 0, kExitFailed = 1, kExitUsage = 2 };

// Checked as far as it can be without a model.
struct DaemonOptions {
  std::vector<ModelSource> models;          // --model: usable names, each once
  std::string model_repository;             // empty: none
  absl::Duration repository_poll_interval;  // zero: never
  ModelLoadOptions load;
  bool measures_overhead = true;                // of compressed models, when they have been loaded
  ServerOptions server;                         // but for what the files below hold
  std::optional<TlsFiles> tls;                  // unset: plain text
  std::string token_file;                       // empty: no tokens
  std::optional<ListenAddress> metrics_listen;  // unset: no metrics
  absl::Duration drain_patience;
  LogFormat log_format = LogFormat::kText;
};

// Parses the arguments and the file that `--config` names. Instead of options an exit code, when
// there is nothing more to do: after --help, --version and --print-config, which write to standard
// output, and after an error, which is written to standard error.
std::variant<DaemonOptions, ExitCode> ParseDaemonOptions(int argc, const char* const* argv);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_OPTIONS_H_
