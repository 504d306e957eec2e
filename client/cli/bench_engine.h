// `ultrasketch bench engine`.
#ifndef ULTRASKETCH_CLIENT_CLI_BENCH_ENGINE_H_
#define ULTRASKETCH_CLIENT_CLI_BENCH_ENGINE_H_

#include <string>

#include "absl/status/status.h"
#include <CLI/CLI.hpp>

#include "client/cli/command.h"
#include "client/cli/load_flags.h"
#include "client/cli/local_model.h"
#include "engine/serving/engine_loop/engine_loop.h"

namespace ultrasketch::cli {

class EngineBench {
 public:
  void Declare(CLI::App& app);
  std::string UsageError() const;
  absl::Status Run(const Environment& environment);

 private:
  LoadFlags flags_;
  LocalModelOptions local_;
  EngineLoopOptions engine_;
};

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_BENCH_ENGINE_H_
