// `ultrasketch bench serve`.
#ifndef ULTRASKETCH_CLIENT_CLI_BENCH_SERVE_H_
#define ULTRASKETCH_CLIENT_CLI_BENCH_SERVE_H_

#include <limits>
#include <string>

#include "absl/status/status.h"
#include <CLI/CLI.hpp>

#include "client/cli/command.h"
#include "client/cli/connection.h"
#include "client/cli/load_flags.h"
#include "client/load/load_client.h"

namespace ultrasketch::cli {

class ServeBench {
 public:
  void Declare(CLI::App& app);
  std::string UsageError() const;
  absl::Status Run(const Environment& environment);

 private:
  LoadFlags flags_;
  Connection connection_;
  client::LoadClientOptions client_;  // but for what connection_ says
  client::LoadRunOptions run_;
  std::string metrics_url_;
  double deadline_ = std::numeric_limits<double>::infinity();
};

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_BENCH_SERVE_H_
