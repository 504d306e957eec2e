#include "engine/bench/load/load_summary.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace ultrasketch {
namespace {

constexpr int kMostSlices = 60;

// Beyond these the load generator may be what is measured.
constexpr double kBusyThreadShare = 0.8;
constexpr double kLateSeconds = 1e-3;
constexpr double kLateShare = 0.1;  // of the time to the first token

struct Window {
  double begin = 0;
  double end = 0;

  bool Has(double seconds) const { return seconds >= begin && seconds <= end; }
  double length() const { return end - begin; }
};

// How many measured requests the plan has in all.
int64_t PlannedRequests(const SchedulePlan& plan) {
  if (plan.loop != LoadLoop::kTrace) return plan.measured_requests;
  const auto entries = static_cast<int64_t>(plan.trace_seconds.size());
  return std::min(plan.measured_requests, std::max<int64_t>(0, entries - plan.warm_up_requests));
}

Window WindowOf(const RunRecord& run) {
  Window window = {std::numeric_limits<double>::infinity(), 0};
  int64_t num_measured = 0;
  for (const LoadRecord& request : run.requests) {
    if (request.is_measured) {
      ++num_measured;
      window.begin = std::min(window.begin, request.intended_seconds);
    }
    window.end = std::max(window.end, request.end_seconds);
  }
  if (num_measured == 0) return {};
  const double end_of_duration = window.begin + run.plan.duration_seconds;
  const bool ended_by_time =
      std::isfinite(end_of_duration) && num_measured < PlannedRequests(run.plan);
  window.end = ended_by_time ? end_of_duration : std::min(window.end, end_of_duration);
  return window;
}

double TimePerOutputToken(const LoadRecord& request) {
  double seconds = 0;
  int64_t tokens = 0;
  for (size_t i = 1; i < request.messages.size(); ++i) {
    seconds += request.messages[i].gap_seconds;
    tokens += request.messages[i].num_tokens;
  }
  // Tokens that came together with the first one came at once.
  if (!request.messages.empty()) tokens += request.messages.front().num_tokens - 1;
  return tokens > 0 ? seconds / static_cast<double>(tokens) : 0;
}

int64_t NumTokens(const LoadRecord& request) {
  int64_t tokens = 0;
  for (const TokenMessage& message : request.messages) tokens += message.num_tokens;
  return tokens;
}

bool IsGood(const LoadRecord& request, const ServiceObjective& objective) {
  return request.code == absl::StatusCode::kOk && !request.messages.empty() &&
         request.messages.front().gap_seconds <= objective.time_to_first_token &&
         TimePerOutputToken(request) <= objective.time_per_output_token &&
         request.end_seconds - request.intended_seconds <= objective.end_to_end;
}

// Calls `visit(seconds, num_tokens)` for each message.
template <typename Visit>
void VisitMessages(const LoadRecord& request, const Visit& visit) {
  double seconds = request.intended_seconds;
  for (const TokenMessage& message : request.messages) {
    seconds += message.gap_seconds;
    visit(seconds, message.num_tokens);
  }
}

// The distributions of measured requests, while they are collected.
struct Samples {
  DistributionSamples time_to_first_token;
  DistributionSamples inter_token;
  DistributionSamples time_per_output_token;
  DistributionSamples longest_gap;
  DistributionSamples end_to_end;
  DistributionSamples queue;
  DistributionSamples prefill;
  DistributionSamples lateness;

  void Add(const LoadRecord& request) {
    lateness.Add(request.sent_seconds - request.intended_seconds);
    if (!request.messages.empty()) {
      time_to_first_token.Add(request.messages.front().gap_seconds);
      inter_token.Add(0, request.messages.front().num_tokens - 1);
      double longest = 0;
      for (size_t i = 1; i < request.messages.size(); ++i) {
        const TokenMessage& message = request.messages[i];
        inter_token.Add(message.gap_seconds / message.num_tokens, message.num_tokens);
        longest = std::max<double>(longest, message.gap_seconds);
      }
      if (request.messages.size() > 1) longest_gap.Add(longest);
      if (NumTokens(request) > 1) time_per_output_token.Add(TimePerOutputToken(request));
    }
    if (request.code != absl::StatusCode::kOk) return;
    end_to_end.Add(request.end_seconds - request.intended_seconds);
    queue.Add(request.queue_seconds);
    prefill.Add(request.prefill_seconds);
  }

  void Summarize(LoadSummary& summary) {
    summary.time_to_first_token = time_to_first_token.Summarize();
    summary.inter_token = inter_token.Summarize();
    summary.time_per_output_token = time_per_output_token.Summarize();
    summary.longest_gap = longest_gap.Summarize();
    summary.end_to_end = end_to_end.Summarize();
    summary.queue = queue.Summarize();
    summary.prefill = prefill.Summarize();
    summary.lateness = lateness.Summarize();
  }
};

void CountRequests(const RunRecord& run, LoadSummary& summary) {
  Samples samples;
  double batch_sizes = 0;
  std::map<std::pair<absl::StatusCode, std::string>, ErrorCount> errors;
  for (const LoadRecord& request : run.requests) {
    if (!request.is_measured) {
      ++summary.num_warm_up;
      continue;
    }
    ++summary.num_requests;
    summary.num_retries += request.num_retries;
    summary.prompt_tokens += request.prompt_tokens;
    summary.cached_prompt_tokens += request.cached_prompt_tokens;
    summary.output_tokens += NumTokens(request);
    summary.num_messages += static_cast<int64_t>(request.messages.size());
    samples.Add(request);
    if (IsGood(request, summary.objective)) ++summary.num_good;
    if (request.code == absl::StatusCode::kOk) {
      ++summary.num_ok;
      if (NumTokens(request) < request.wanted_tokens) ++summary.num_short;
      batch_sizes += request.mean_batch_size;
    } else {
      ErrorCount& error = errors[{request.code, request.reason}];
      if (error.count++ == 0) error = {request.code, request.reason, request.message, 1};
    }
  }
  samples.Summarize(summary);
  if (summary.num_ok > 0)
    summary.mean_batch_size = batch_sizes / static_cast<double>(summary.num_ok);
  for (auto& [key, error] : errors) summary.errors.push_back(std::move(error));
  std::stable_sort(summary.errors.begin(), summary.errors.end(),
                   [](const ErrorCount& a, const ErrorCount& b) { return a.count > b.count; });
  DistributionSamples rejections;
  for (const RejectionRecord& rejection : run.rejections) {
    if (rejection.is_measured) rejections.Add(rejection.latency_seconds);
  }
  summary.rejection = rejections.Summarize();
}

void ReckonRates(const RunRecord& run, LoadSummary& summary) {
  const Window window = WindowOf(run);
  summary.window_seconds = window.length();
  if (window.length() <= 0) return;
  int64_t ended = 0;
  int64_t good = 0;
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  for (const LoadRecord& request : run.requests) {
    if (request.code == absl::StatusCode::kOk && window.Has(request.end_seconds)) {
      ++ended;
      if (IsGood(request, summary.objective)) ++good;
    }
    bool is_first = true;
    VisitMessages(request, [&](double seconds, int32_t num_tokens) {
      if (window.Has(seconds)) {
        output_tokens += num_tokens;
        if (is_first) prompt_tokens += request.prompt_tokens;
      }
      is_first = false;
    });
  }
  summary.requests_per_second = static_cast<double>(ended) / window.length();
  summary.good_requests_per_second = static_cast<double>(good) / window.length();
  summary.prompt_tokens_per_second = static_cast<double>(prompt_tokens) / window.length();
  summary.output_tokens_per_second = static_cast<double>(output_tokens) / window.length();
}

// The least of 1, 2, 5 times a power of ten that cuts `seconds` into at most kMostSlices.
double SliceSeconds(double seconds) {
  double power = 1e-3;
  while (true) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      if (factor * power * kMostSlices >= seconds) return factor * power;
    }
    power *= 10;
  }
}

LoadTimeline TimelineOf(const RunRecord& run) {
  double end = 0;
  for (const LoadRecord& request : run.requests) end = std::max(end, request.end_seconds);
  LoadTimeline timeline;
  if (end <= 0) return timeline;
  const double slice = SliceSeconds(end);
  timeline.slice_seconds = slice;
  const auto num_slices = static_cast<size_t>(std::ceil(end / slice));
  timeline.output_tokens_per_second.resize(num_slices);
  timeline.running_requests.resize(num_slices);
  timeline.errors.resize(num_slices);
  const auto index_at = [&](double seconds) {
    return std::min(static_cast<size_t>(std::max(0.0, seconds / slice)), num_slices - 1);
  };
  for (const LoadRecord& request : run.requests) {
    VisitMessages(request, [&](double seconds, int32_t num_tokens) {
      timeline.output_tokens_per_second[index_at(seconds)] += num_tokens / slice;
    });
    if (request.code != absl::StatusCode::kOk) timeline.errors[index_at(request.end_seconds)] += 1;
    for (size_t i = index_at(request.sent_seconds); i <= index_at(request.end_seconds); ++i) {
      const double begin = std::max(request.sent_seconds, slice * static_cast<double>(i));
      const double until = std::min(request.end_seconds, slice * static_cast<double>(i + 1));
      timeline.running_requests[i] += std::max(0.0, until - begin) / slice;
    }
  }
  return timeline;
}

void Warn(LoadSummary& summary) {
  if (summary.client.busiest_thread_share > kBusyThreadShare) {
    summary.warnings.push_back(absl::StrFormat(
        "a thread of the load generator was busy %.0f%% of the time: its latencies include waiting "
        "for itself; give it more --threads",
        100 * summary.client.busiest_thread_share));
  }
  const double late = summary.lateness.p99;
  if (summary.plan.loop != LoadLoop::kClosed && late > kLateSeconds &&
      late > kLateShare * summary.time_to_first_token.p50) {
    summary.warnings.push_back(absl::StrFormat(
        "the load generator sent 1%% of the requests more than %.1f ms late: the machine is too "
        "slow or too busy for this rate; latencies include that time",
        1e3 * late));
  }
  if (summary.num_short > 0) {
    summary.warnings.push_back(
        absl::StrCat(summary.num_short, " requests got fewer tokens than they asked for"));
  }
}

nlohmann::ordered_json ToJson(const DistributionSummary& summary) {
  return {{"count", summary.count}, {"mean", summary.mean}, {"p50", summary.p50},
          {"p90", summary.p90},     {"p99", summary.p99},   {"max", summary.max}};
}

nlohmann::ordered_json FiniteOrNull(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json();
}

}  // namespace

std::string_view LoadLoopName(LoadLoop loop) {
  switch (loop) {
    case LoadLoop::kClosed:
      return "closed";
    case LoadLoop::kOpen:
      return "open";
    case LoadLoop::kTrace:
      break;
  }
  return "trace";
}

LoadSummary SummarizeRun(const RunRecord& run, const ServiceObjective& objective) {
  LoadSummary summary;
  summary.plan = run.plan;
  summary.objective = objective;
  summary.client = run.client;
  CountRequests(run, summary);
  ReckonRates(run, summary);
  summary.timeline = TimelineOf(run);
  Warn(summary);
  return summary;
}

nlohmann::ordered_json ToJson(const LoadSummary& summary) {
  const SchedulePlan& plan = summary.plan;
  nlohmann::ordered_json json = {{"loop", std::string(LoadLoopName(plan.loop))}};
  if (plan.loop == LoadLoop::kClosed) json["concurrency"] = plan.concurrency;
  if (plan.loop == LoadLoop::kOpen) {
    json["rate"] = plan.rate;
    json["arrivals"] = plan.arrivals == ArrivalProcess::kPoisson ? "poisson" : "constant";
  }
  json["seconds"] = summary.window_seconds;
  json["output_tokens_per_second"] = summary.output_tokens_per_second;
  json["prompt_tokens_per_second"] = summary.prompt_tokens_per_second;
  json["requests_per_second"] = summary.requests_per_second;
  json["good_requests_per_second"] = summary.good_requests_per_second;
  json["requests"] = {{"warm_up", summary.num_warm_up}, {"measured", summary.num_requests},
                      {"ok", summary.num_ok},           {"good", summary.num_good},
                      {"short", summary.num_short},     {"retries", summary.num_retries}};
  json["tokens"] = {{"prompt", summary.prompt_tokens},
                    {"cached_prompt", summary.cached_prompt_tokens},
                    {"output", summary.output_tokens},
                    {"messages", summary.num_messages}};
  json["mean_batch_size"] = summary.mean_batch_size;
  json["time_to_first_token_seconds"] = ToJson(summary.time_to_first_token);
  json["inter_token_seconds"] = ToJson(summary.inter_token);
  json["time_per_output_token_seconds"] = ToJson(summary.time_per_output_token);
  json["longest_gap_seconds"] = ToJson(summary.longest_gap);
  json["end_to_end_seconds"] = ToJson(summary.end_to_end);
  json["queue_seconds"] = ToJson(summary.queue);
  json["prefill_seconds"] = ToJson(summary.prefill);
  json["rejection_seconds"] = ToJson(summary.rejection);
  nlohmann::ordered_json errors = nlohmann::ordered_json::array();
  for (const ErrorCount& error : summary.errors) {
    errors.push_back({{"code", absl::StatusCodeToString(error.code)},
                      {"reason", error.reason},
                      {"count", error.count},
                      {"example", error.example}});
  }
  json["errors"] = std::move(errors);
  json["objective"] = {
      {"time_to_first_token_seconds", FiniteOrNull(summary.objective.time_to_first_token)},
      {"time_per_output_token_seconds", FiniteOrNull(summary.objective.time_per_output_token)},
      {"end_to_end_seconds", FiniteOrNull(summary.objective.end_to_end)}};
  json["client"] = {{"lateness_seconds", ToJson(summary.lateness)},
                    {"cpu_seconds", summary.client.cpu_seconds},
                    {"cpu_cores", summary.client.wall_seconds > 0
                                      ? summary.client.cpu_seconds / summary.client.wall_seconds
                                      : 0},
                    {"busiest_thread_share", summary.client.busiest_thread_share}};
  if (!summary.server_counters.empty()) json["server_counters"] = summary.server_counters;
  json["timeline"] = {{"slice_seconds", summary.timeline.slice_seconds},
                      {"output_tokens_per_second", summary.timeline.output_tokens_per_second},
                      {"running_requests", summary.timeline.running_requests},
                      {"errors", summary.timeline.errors}};
  json["warnings"] = summary.warnings;
  return json;
}

}  // namespace ultrasketch
