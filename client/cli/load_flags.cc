#include "client/cli/load_flags.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"

#include "client/cli/input.h"
#include "client/cli/load_table.h"
#include "client/cli/output.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/bench/load/load_page.h"

namespace ultrasketch::cli {
namespace {

constexpr int64_t kMaxConcurrency = 100'000;
constexpr double kDefaultDuration = 10;
constexpr int64_t kMaxTextBytes = int64_t{1} << 26;
constexpr size_t kUsedTextBytes = size_t{1} << 22;

// Prompts found in the prefix cache that are not there because the workload shares them.
constexpr double kUnexpectedCachedShare = 0.05;

std::optional<double> ParseSeconds(const std::string& text) {
  double seconds = 0;
  if (!absl::SimpleAtod(text, &seconds)) {
    absl::Duration duration;
    if (!absl::ParseDuration(text, &duration)) return std::nullopt;
    seconds = absl::ToDoubleSeconds(duration);
  }
  return seconds > 0 && std::isfinite(seconds) ? std::optional(seconds) : std::nullopt;
}

// Whether it is the spelling that is wrong, rather than a file.
bool IsMisspelled(const std::string& lengths) {
  return !lengths.starts_with("file:") && !LengthDistribution::Parse(lengths).ok();
}

// The beginning of a text, cut between characters.
std::string_view Beginning(std::string_view text) {
  return text.size() <= kUsedTextBytes ? text : CutText(text, kUsedTextBytes).front();
}

}  // namespace

CLI::Option* DeclareSeconds(CLI::App& app, const char* name, double& seconds, const char* help) {
  return app
      .add_option_function<std::string>(
          name, [&seconds](const std::string& text) { seconds = *ParseSeconds(text); }, help)
      ->check(CLI::Validator(
          [](const std::string& text) {
            return ParseSeconds(text).has_value()
                       ? ""
                       : absl::StrCat("'", text,
                                      "' is not a time above 0, such as 1.5, 1.5s or 200ms");
          },
          ""))
      ->type_name("TIME");
}

void LoadFlags::DeclareCommon(CLI::App& app) {
  const char* load = "Load";
  app.add_option("--concurrency", concurrencies_,
                 "Closed loop: requests in flight; a run for each, with commas between")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, kMaxConcurrency))
      ->type_name("N")
      ->group(load);
  app.add_option("--requests", requests_, "Requests of a run, those of the warm-up not counted")
      ->check(AtLeast<int64_t>(1))
      ->type_name("N")
      ->group(load);
  DeclareSeconds(app, "--duration", duration_,
                 "Send requests for this long after the warm-up (default 10 s, or --requests)")
      ->group(load);
  app.add_option("--warm-up", warm_up_,
                 "So many requests first, that no latency counts (default: the concurrency; 0 in "
                 "open loops)")
      ->check(AtLeast<int64_t>(0))
      ->type_name("N")
      ->group(load);

  const char* workload = "Workload";
  app.add_option("--prompt-tokens", prompt_tokens_,
                 "Lengths: N, A:B, lognormal:MEDIAN:SIGMA:MAX or file:PATH")
      ->capture_default_str()
      ->type_name("LENGTHS")
      ->group(workload);
  app.add_option("--output-tokens", output_tokens_, "Likewise; end tokens are ignored")
      ->capture_default_str()
      ->type_name("LENGTHS")
      ->group(workload);
  app.add_option("--shared-prefix-tokens", workload_.shared_prefix_tokens,
                 "Tokens in front of every prompt that it shares with others")
      ->check(CLI::Range(int64_t{0}, kMaxLoadTokens))
      ->type_name("N")
      ->group(workload);
  app.add_option("--prefixes", workload_.num_prefixes, "How many different shared prefixes")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 31))
      ->capture_default_str()
      ->type_name("N")
      ->group(workload);
  app.add_option("--prompt-file", prompt_file_,
                 "Cut prompts out of (the first 4 MiB of) this text, not of random tokens")
      ->type_name("FILE")
      ->group(workload);
  app.add_option("--temperature", temperature_, "Of the sampling; 0: greedy")
      ->check(NumberIn(0.0, 100.0))
      ->capture_default_str()
      ->type_name("T")
      ->group(workload);
  app.add_option("--seed", workload_.seed, "Same seed, same requests at the same times")
      ->check(AtLeast<uint64_t>(0))
      ->capture_default_str()
      ->type_name("N")
      ->group(workload);

  const char* objective = "Objective (goodput counts the requests that keep it)";
  DeclareSeconds(app, "--slo-ttft", objective_.time_to_first_token, "Most time to first token")
      ->group(objective);
  DeclareSeconds(app, "--slo-itl", objective_.time_per_output_token,
                 "Most time between tokens, on a request's average")
      ->group(objective);
  DeclareSeconds(app, "--slo-e2e", objective_.end_to_end, "Most time to a request's end")
      ->group(objective);

  app.add_option("--out", out_, "Write what --json prints to this file")->type_name("FILE");
  app.add_option("--html", html_, "Write a page with plots to this file")->type_name("FILE");
}

void LoadFlags::DeclareOpenLoop(CLI::App& app) {
  const char* load = "Load";
  app.add_option("--rate", rates_,
                 "Open loop: requests a second, whatever became of those before; a run for each, "
                 "with commas between")
      ->delimiter(',')
      ->check(NumberIn(1e-6, 1e6))
      ->type_name("R")
      ->group(load);
  app.add_option("--arrivals", arrivals_, "Of --rate: poisson or constant")
      ->check(CLI::IsMember({"poisson", "constant"}))
      ->capture_default_str()
      ->type_name("KIND")
      ->group(load);
  app.add_option("--trace", trace_file_,
                 "Open loop: arrivals and lengths from JSON Lines (docs/benchmarking.md)")
      ->type_name("FILE")
      ->group(load);
  app.add_option("--trace-speed", trace_speed_, "Play the trace so many times as fast")
      ->check(NumberIn(1e-6, 1e6))
      ->capture_default_str()
      ->type_name("X")
      ->group(load);
}

std::string LoadFlags::UsageError() const {
  const int loops = static_cast<int>(!concurrencies_.empty()) + static_cast<int>(!rates_.empty()) +
                    static_cast<int>(!trace_file_.empty());
  if (loops > 1) return "only one of --concurrency, --rate and --trace can be given";
  const std::pair<const char*, const std::string&> all_lengths[] = {
      {"--prompt-tokens", prompt_tokens_}, {"--output-tokens", output_tokens_}};
  for (const auto& [name, lengths] : all_lengths) {
    if (IsMisspelled(lengths)) {
      return absl::StrCat(name, ": ", LengthDistribution::Parse(lengths).status().message());
    }
  }
  return "";
}

absl::Status LoadFlags::Prepare(int32_t vocab_size, int64_t max_context_tokens,
                                const std::stop_token& stop, const EncodePiece& encode) {
  US_ASSIGN_OR_RETURN(workload_.prompt_tokens, LengthDistribution::Parse(prompt_tokens_));
  US_ASSIGN_OR_RETURN(workload_.output_tokens, LengthDistribution::Parse(output_tokens_));
  if (!trace_file_.empty()) {
    US_ASSIGN_OR_RETURN(workload_.trace, ReadTrace(trace_file_));
  }
  US_RETURN_IF_ERROR(CheckWorkload(workload_, max_context_tokens));
  source_.vocab_size = vocab_size;
  if (!prompt_file_.empty()) {
    US_ASSIGN_OR_RETURN(const std::string text, ReadInput(prompt_file_, stop, kMaxTextBytes));
    auto ids = EncodePromptText(Beginning(text), encode);
    if (!ids.ok()) return Annotate(ids.status(), prompt_file_);
    source_.text_ids = *std::move(ids);
  }
  // Refused now rather than after the runs.
  for (const std::string& file : {out_, html_}) {
    if (!file.empty()) US_RETURN_IF_ERROR(AtomicFileWriter::Create(file).status());
  }
  return absl::OkStatus();
}

std::vector<SchedulePlan> LoadFlags::Plans() const {
  SchedulePlan plan;
  plan.seed = workload_.seed;
  if (requests_ > 0) plan.measured_requests = requests_;
  plan.duration_seconds = duration_;
  if (requests_ == 0 && !std::isfinite(duration_) && trace_file_.empty()) {
    plan.duration_seconds = kDefaultDuration;
  }
  plan.warm_up_requests = std::max<int64_t>(0, warm_up_);
  std::vector<SchedulePlan> plans;
  for (const int64_t concurrency : concurrencies_) {
    plan.loop = LoadLoop::kClosed;
    plan.concurrency = concurrency;
    if (warm_up_ < 0) plan.warm_up_requests = concurrency;
    plans.push_back(plan);
  }
  for (const double rate : rates_) {
    plan.loop = LoadLoop::kOpen;
    plan.rate = rate;
    plan.arrivals = arrivals_ == "constant" ? ArrivalProcess::kConstant : ArrivalProcess::kPoisson;
    plans.push_back(plan);
  }
  if (!trace_file_.empty()) {
    plan.loop = LoadLoop::kTrace;
    for (const TraceEntry& entry : workload_.trace) {
      plan.trace_seconds.push_back(entry.arrival_seconds / trace_speed_);
    }
    plans.push_back(plan);
  }
  return plans;
}

Workload LoadFlags::WorkloadOf(size_t run) const { return {workload_, source_, run}; }

LoadSummary LoadFlags::Summarize(const RunRecord& record) const {
  LoadSummary summary = SummarizeRun(record, objective_);
  const bool shares_nothing = workload_.trace.empty() && workload_.shared_prefix_tokens == 0;
  if (shares_nothing && static_cast<double>(summary.cached_prompt_tokens) >
                            kUnexpectedCachedShare * static_cast<double>(summary.prompt_tokens)) {
    summary.warnings.push_back(absl::StrFormat(
        "%.0f%% of the prompts' tokens were in the prefix cache: the same requests came before; "
        "give another --seed",
        100.0 * static_cast<double>(summary.cached_prompt_tokens) /
            static_cast<double>(summary.prompt_tokens)));
  }
  return summary;
}

nlohmann::ordered_json LoadFlags::WorkloadJson() const {
  nlohmann::ordered_json json = {{"prompt_tokens", prompt_tokens_},
                                 {"output_tokens", output_tokens_}};
  if (!trace_file_.empty()) {
    json = {{"trace", trace_file_},
            {"trace_entries", workload_.trace.size()},
            {"trace_speed", trace_speed_}};
  }
  json["shared_prefix_tokens"] = workload_.shared_prefix_tokens;
  json["prefixes"] = workload_.num_prefixes;
  json["prompt_file"] = prompt_file_;
  json["temperature"] = temperature_;
  json["seed"] = workload_.seed;
  return json;
}

absl::Status LoadFlags::Write(const nlohmann::ordered_json& head, const std::string& title,
                              const std::string& subtitle, const std::vector<LoadSummary>& runs,
                              const Environment& environment) const {
  nlohmann::ordered_json json = head;
  json["workload"] = WorkloadJson();
  json["runs"] = nlohmann::ordered_json::array();
  for (const LoadSummary& run : runs) json["runs"].push_back(ToJson(run));
  if (!out_.empty()) US_RETURN_IF_ERROR(WriteFileAtomically(out_, FormatJson(json)));
  if (!html_.empty()) {
    US_RETURN_IF_ERROR(WriteFileAtomically(html_, LoadHtml(title, subtitle, runs)));
  }
  if (environment.json) return WriteJson(json);
  return WriteOutput(absl::StrCat(title, "\n", subtitle, "\n\n", DescribeLoad(runs)));
}

void ShowProgress(const SchedulePlan& plan, int64_t num_ended, double seconds,
                  ProgressBar& progress) {
  if (plan.loop == LoadLoop::kTrace || !std::isfinite(plan.duration_seconds)) {
    const int64_t total = plan.loop == LoadLoop::kTrace
                              ? std::min<int64_t>(static_cast<int64_t>(plan.trace_seconds.size()),
                                                  plan.measured_requests)
                              : plan.warm_up_requests + plan.measured_requests;
    progress.Update(std::min(num_ended, total), total, "requests");
  } else {
    progress.UpdateFraction("sending", std::min(1.0, seconds / plan.duration_seconds));
  }
}

absl::Status CheckSomeSucceeded(const LoadSummary& summary) {
  if (summary.num_ok > 0 || summary.num_requests == 0) return absl::OkStatus();
  const ErrorCount& error = summary.errors.front();
  return {error.code, absl::StrCat("none of ", summary.num_requests,
                                   " requests succeeded, most of them because: ", error.example)};
}

}  // namespace ultrasketch::cli
