#include "client/cli/load_table.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "client/cli/output.h"
#include "engine/bench/load/load_page.h"

namespace ultrasketch::cli {
namespace {

std::string Milliseconds(double seconds) { return absl::StrFormat("%.2f", 1e3 * seconds); }

void AddRow(const char* name, const DistributionSummary& summary,
            std::vector<std::vector<std::string>>& rows) {
  if (summary.count == 0) return;
  rows.push_back({name, Milliseconds(summary.mean), Milliseconds(summary.p50),
                  Milliseconds(summary.p90), Milliseconds(summary.p99), Milliseconds(summary.max)});
}

bool HasObjective(const ServiceObjective& objective) {
  return std::isfinite(objective.time_to_first_token) ||
         std::isfinite(objective.time_per_output_token) || std::isfinite(objective.end_to_end);
}

std::string DescribeRun(const LoadSummary& run) {
  std::string text =
      absl::StrFormat("%s: %s requests in %.2f s (and %s to warm up), %s ok\n", NameLoad(run.plan),
                      WithThousands(run.num_requests), run.window_seconds,
                      WithThousands(run.num_warm_up), WithThousands(run.num_ok));
  absl::StrAppendFormat(&text,
                        "%.1f output tokens/s, %.1f prompt tokens/s, %.2f requests/s, %.1f "
                        "sequences a step\n",
                        run.output_tokens_per_second, run.prompt_tokens_per_second,
                        run.requests_per_second, run.mean_batch_size);
  if (HasObjective(run.objective) && run.num_requests > 0) {
    absl::StrAppendFormat(
        &text, "goodput %.2f requests/s: %.1f%% of the requests kept the objective\n",
        run.good_requests_per_second,
        100.0 * static_cast<double>(run.num_good) / static_cast<double>(run.num_requests));
  }
  if (run.cached_prompt_tokens > 0) {
    absl::StrAppendFormat(&text, "%.1f%% of the prompts' tokens were in the prefix cache\n",
                          100.0 * static_cast<double>(run.cached_prompt_tokens) /
                              static_cast<double>(run.prompt_tokens));
  }
  std::vector<std::vector<std::string>> rows = {
      {"milliseconds", "mean", "p50", "p90", "p99", "max"}};
  AddRow("time to first token", run.time_to_first_token, rows);
  AddRow("  of that, queue", run.queue, rows);
  AddRow("  of that, prefill", run.prefill, rows);
  AddRow("between tokens", run.inter_token, rows);
  AddRow("  a request's average", run.time_per_output_token, rows);
  AddRow("  a request's longest", run.longest_gap, rows);
  AddRow("end to end", run.end_to_end, rows);
  AddRow("rejections", run.rejection, rows);
  AddRow("sent late by", run.lateness, rows);
  absl::StrAppend(&text, FormatTable(rows));
  const double cores =
      run.client.wall_seconds > 0 ? run.client.cpu_seconds / run.client.wall_seconds : 0;
  if (run.client.includes_engine) {
    absl::StrAppendFormat(&text, "engine and load generator: %.2f cores\n", cores);
  } else {
    absl::StrAppendFormat(&text, "load generator: %.2f cores, its busiest thread %.0f%% busy\n",
                          cores, 100 * run.client.busiest_thread_share);
  }
  if (const auto cpu = run.server_counters.find("process_cpu_seconds_total");
      cpu != run.server_counters.end() && run.client.wall_seconds > 0) {
    absl::StrAppendFormat(&text, "server: %.2f cores\n", cpu->second / run.client.wall_seconds);
  }
  if (run.num_retries > 0) absl::StrAppend(&text, WithThousands(run.num_retries), " retries\n");
  for (const ErrorCount& error : run.errors) {
    absl::StrAppend(&text, WithThousands(error.count), " x ", absl::StatusCodeToString(error.code),
                    error.reason.empty() ? "" : " ", error.reason, ": ", error.example, "\n");
  }
  for (const std::string& warning : run.warnings) {
    absl::StrAppend(&text, "warning: ", warning, "\n");
  }
  return text;
}

}  // namespace

std::string DescribeLoad(const std::vector<LoadSummary>& runs) {
  std::string text;
  for (const LoadSummary& run : runs) absl::StrAppend(&text, DescribeRun(run), "\n");
  if (runs.size() < 2) return text;
  std::vector<std::vector<std::string>> rows = {{"load", "tokens/s", "requests/s", "good/s",
                                                 "first token p50 ms", "p99", "between tokens p50",
                                                 "p99", "errors"}};
  for (const LoadSummary& run : runs) {
    rows.push_back({NameLoad(run.plan), absl::StrFormat("%.1f", run.output_tokens_per_second),
                    absl::StrFormat("%.2f", run.requests_per_second),
                    absl::StrFormat("%.2f", run.good_requests_per_second),
                    Milliseconds(run.time_to_first_token.p50),
                    Milliseconds(run.time_to_first_token.p99), Milliseconds(run.inter_token.p50),
                    Milliseconds(run.inter_token.p99),
                    WithThousands(run.num_requests - run.num_ok)});
  }
  return absl::StrCat(text, FormatTable(rows));
}

}  // namespace ultrasketch::cli
