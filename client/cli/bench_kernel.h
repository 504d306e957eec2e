// `ultrasketch bench kernel`.
#ifndef ULTRASKETCH_CLIENT_CLI_BENCH_KERNEL_H_
#define ULTRASKETCH_CLIENT_CLI_BENCH_KERNEL_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include <CLI/CLI.hpp>

#include "client/cli/command.h"
#include "engine/bench/kernel_bench.h"

namespace ultrasketch::cli {

class KernelBench {
 public:
  void Declare(CLI::App& app);
  absl::Status Run(const Environment& environment);

 private:
  absl::Status RunOnCpu(const Environment& environment);
  absl::Status RunOnCuda(int ordinal, const Environment& environment);

  int num_threads_ = 0;
  std::string device_ = "cuda";
  std::vector<std::string> presets_ = {"llama-3.1-8b"};
  KernelBenchOptions options_;
};

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_BENCH_KERNEL_H_
