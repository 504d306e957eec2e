// What `ultrasketch bench serve` and `ultrasketch bench engine` have in common: flags, and how
// results are shown.
#ifndef ULTRASKETCH_CLIENT_CLI_LOAD_FLAGS_H_
#define ULTRASKETCH_CLIENT_CLI_LOAD_FLAGS_H_

#include <cstdint>
#include <limits>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include <CLI/CLI.hpp>

#include "client/cli/command.h"
#include "client/cli/progress.h"
#include "engine/bench/load/load_summary.h"
#include "engine/bench/load/prompt_text.h"
#include "engine/bench/load/schedule.h"
#include "engine/bench/load/workload.h"

namespace ultrasketch::cli {

// A time span above 0 as people write it, "1.5", "1.5s" or "200ms", into `seconds`.
CLI::Option* DeclareSeconds(CLI::App& app, const char* name, double& seconds, const char* help);

class LoadFlags {
 public:
  // Concurrencies, how long to run, the workload, objectives and where results go.
  void DeclareCommon(CLI::App& app);
  // Open loops.
  void DeclareOpenLoop(CLI::App& app);

  // As Command's.
  std::string UsageError() const;

  bool HasClosedLoop() const { return !concurrencies_.empty(); }
  bool HasOpenLoop() const { return !rates_.empty() || !trace_file_.empty(); }

  // Everything that can fail before the first request: lengths, trace and text are read, and the
  // files for results tried. `encode` makes tokens of --prompt-file, which is read until `stop` is
  // requested.
  absl::Status Prepare(int32_t vocab_size, int64_t max_context_tokens, const std::stop_token& stop,
                       const EncodePiece& encode);

  // After Prepare. A run for each rate or concurrency, in the order of the command line.
  std::vector<SchedulePlan> Plans() const;
  Workload WorkloadOf(size_t run) const;

  float temperature() const { return temperature_; }
  const ServiceObjective& objective() const { return objective_; }

  // What the sent workload makes of `run`'s record, warnings about the workload included.
  LoadSummary Summarize(const RunRecord& record) const;

  // Writes files and standard output. `head` is what the JSON begins with, `title` and `subtitle`
  // are the page's.
  absl::Status Write(const nlohmann::ordered_json& head, const std::string& title,
                     const std::string& subtitle, const std::vector<LoadSummary>& runs,
                     const Environment& environment) const;

 private:
  nlohmann::ordered_json WorkloadJson() const;

  std::vector<int64_t> concurrencies_;
  std::vector<double> rates_;
  std::string arrivals_ = "poisson";
  std::string trace_file_;
  double trace_speed_ = 1;
  int64_t requests_ = 0;  // 0: not given
  double duration_ = std::numeric_limits<double>::infinity();
  int64_t warm_up_ = -1;  // -1: not given

  std::string prompt_tokens_ = "128";
  std::string output_tokens_ = "128";
  std::string prompt_file_;
  float temperature_ = 0;
  ServiceObjective objective_;
  std::string out_;
  std::string html_;

  WorkloadOptions workload_;
  TokenSource source_;
};

// How far a run has come.
void ShowProgress(const SchedulePlan& plan, int64_t num_ended, double seconds,
                  ProgressBar& progress);

// When no request of a run succeeded: the most frequent error.
absl::Status CheckSomeSucceeded(const LoadSummary& summary);

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_LOAD_FLAGS_H_
