// `ultrasketch bench step`.
#ifndef ULTRASKETCH_CLIENT_CLI_BENCH_STEP_H_
#define ULTRASKETCH_CLIENT_CLI_BENCH_STEP_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include <CLI/CLI.hpp>

#include "client/cli/command.h"
#include "engine/bench/step_bench.h"

namespace ultrasketch::cli {

class StepBench {
 public:
  void Declare(CLI::App& app);
  absl::Status Run(const Environment& environment);

 private:
  std::vector<std::string> presets_ = {"llama-3.2-1b"};
  std::vector<int64_t> batches_ = {1, 8, 64};
  int64_t context_ = 512;
  int64_t prompt_ = 2048;
  StepBenchOptions options_;
};

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_BENCH_STEP_H_
