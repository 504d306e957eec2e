#include "engine/bench/load/load_page.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "engine/report/chart_scale.h"
#include "engine/report/html_page.h"
#include "engine/report/svg_chart.h"

namespace ultrasketch {
namespace {

using Distribution = DistributionSummary LoadSummary::*;

std::string Milliseconds(double seconds) { return ShortNumber(1e3 * seconds); }

std::string Capitalized(std::string text) {
  if (!text.empty() && text[0] >= 'a' && text[0] <= 'z') text[0] = static_cast<char>(text[0] - 32);
  return text;
}

int64_t NumErrors(const LoadSummary& run) { return run.num_requests - run.num_ok; }

bool HasObjective(const ServiceObjective& objective) {
  return std::isfinite(objective.time_to_first_token) ||
         std::isfinite(objective.time_per_output_token) || std::isfinite(objective.end_to_end);
}

std::string DescribeObjective(const ServiceObjective& objective) {
  if (!HasObjective(objective)) return "no objective was given: all that ended well";
  std::string text;
  const auto add = [&](const char* name, double seconds) {
    if (!std::isfinite(seconds)) return;
    absl::StrAppend(&text, text.empty() ? "" : ", ", name, " at most ", Milliseconds(seconds),
                    " ms");
  };
  add("first token", objective.time_to_first_token);
  add("between tokens", objective.time_per_output_token);
  add("end to end", objective.end_to_end);
  return text;
}

std::string LatencyTile(const char* title, const DistributionSummary& summary) {
  return Tile(title, absl::StrCat(Milliseconds(summary.p50), " ms"),
              absl::StrCat("median; 90%: ", Milliseconds(summary.p90), ", 99%: ",
                           Milliseconds(summary.p99), ", most: ", Milliseconds(summary.max)));
}

std::string Tiles(const LoadSummary& run) {
  std::string html = "<dl class=\"tiles\">\n";
  absl::StrAppend(
      &html,
      Tile("Output", absl::StrCat(ShortNumber(run.output_tokens_per_second), " tokens/s"),
           absl::StrCat("prompts: ", ShortNumber(run.prompt_tokens_per_second), " tokens/s; ",
                        ShortNumber(run.mean_batch_size), " sequences a step")),
      Tile("Requests", absl::StrCat(ShortNumber(run.requests_per_second), "/s"),
           absl::StrCat(WithSpaces(run.num_requests), " in ", ShortNumber(run.window_seconds),
                        " s, ", WithSpaces(NumErrors(run)), " failed")),
      Tile("Goodput", absl::StrCat(ShortNumber(run.good_requests_per_second), "/s"),
           DescribeObjective(run.objective)),
      LatencyTile("Time to first token", run.time_to_first_token),
      LatencyTile("Between tokens", run.inter_token), LatencyTile("End to end", run.end_to_end));
  return absl::StrCat(html, "</dl>\n");
}

std::string Notes(const LoadSummary& run) {
  std::string html;
  for (const ErrorCount& error : run.errors) {
    absl::StrAppend(&html, "<p class=\"none\">",
                    EscapeHtml(absl::StrCat(
                        error.count, " times ", absl::StatusCodeToString(error.code),
                        error.reason.empty() ? "" : " ", error.reason, ": ", error.example)),
                    "</p>\n");
  }
  for (const std::string& warning : run.warnings) {
    absl::StrAppend(&html, "<p class=\"none\">Warning: ", EscapeHtml(warning), ".</p>\n");
  }
  return html;
}

ChartSeries Cumulative(std::string name, const DistributionSummary& summary) {
  ChartSeries series = {std::move(name), {}};
  for (size_t percent = 0; percent < summary.percentiles.size(); ++percent) {
    series.points.emplace_back(1e3 * summary.percentiles[percent], static_cast<double>(percent));
  }
  return series;
}

LineChart CumulativeChart(std::string description, const char* x_label) {
  LineChart chart;
  chart.description = std::move(description);
  chart.x_label = x_label;
  chart.y_label = "at most so long, %";
  chart.x_scale = XScale::kLogarithmic;
  chart.has_markers = false;
  return chart;
}

std::string DistributionsOfOneRun(const LoadSummary& run) {
  LineChart chart = CumulativeChart("Cumulative distributions of latencies", "milliseconds");
  chart.series = {Cumulative("time to first token", run.time_to_first_token),
                  Cumulative("between tokens", run.inter_token),
                  Cumulative("end to end", run.end_to_end), Cumulative("queue", run.queue)};
  return Figure("Latencies",
                "The share of requests, or of steps from token to token, that took at most so "
                "long. The queue is as the server measured it.",
                RenderSvg(chart));
}

// Runs to be told apart by colour: the first, the last, and evenly between.
std::vector<const LoadSummary*> Thinned(const std::vector<LoadSummary>& runs) {
  std::vector<const LoadSummary*> some;
  const size_t count = std::min(runs.size(), static_cast<size_t>(kNumSeriesColors));
  for (size_t i = 0; i < count; ++i) {
    some.push_back(&runs[count == 1 ? 0 : i * (runs.size() - 1) / (count - 1)]);
  }
  return some;
}

std::string DistributionsOfRuns(const std::vector<LoadSummary>& runs) {
  std::string html;
  constexpr std::pair<const char*, Distribution> kKinds[] = {
      {"Time to first token", &LoadSummary::time_to_first_token},
      {"Between tokens", &LoadSummary::inter_token},
      {"End to end", &LoadSummary::end_to_end}};
  for (const auto& [title, distribution] : kKinds) {
    LineChart chart =
        CumulativeChart(absl::StrCat("Cumulative distribution: ", title), "milliseconds");
    for (const LoadSummary* run : Thinned(runs)) {
      chart.series.push_back(Cumulative(NameLoad(run->plan), run->*distribution));
    }
    absl::StrAppend(&html, Figure(title, "The share that took at most so long.", RenderSvg(chart)));
  }
  return html;
}

std::string LatencyAgainstThroughput(const std::vector<LoadSummary>& runs, const char* title,
                                     Distribution distribution) {
  LineChart chart;
  chart.description = absl::StrCat(title, " against throughput");
  chart.x_label = "output tokens/s";
  chart.y_label = "milliseconds";
  chart.x_scale = XScale::kLinear;
  chart.series = {{"median", {}}, {"90%", {}}, {"99%", {}}};
  for (const LoadSummary& run : runs) {
    const DistributionSummary& summary = run.*distribution;
    const double throughput = run.output_tokens_per_second;
    chart.series[0].points.emplace_back(throughput, 1e3 * summary.p50);
    chart.series[1].points.emplace_back(throughput, 1e3 * summary.p90);
    chart.series[2].points.emplace_back(throughput, 1e3 * summary.p99);
  }
  return Figure(absl::StrCat(title, " against throughput"), "A point for each run, in their order.",
                RenderSvg(chart));
}

std::string Timeline(const LoadSummary& run) {
  const LoadTimeline& timeline = run.timeline;
  const auto chart_of = [&](const char* y_label, const std::vector<double>& values) {
    LineChart chart;
    chart.description = absl::StrCat(y_label, " along the run");
    chart.x_label = "seconds since the start";
    chart.y_label = y_label;
    chart.x_scale = XScale::kLinear;
    chart.has_markers = false;
    chart.series = {{y_label, {}}};
    for (size_t i = 0; i < values.size(); ++i) {
      const double middle = (static_cast<double>(i) + 0.5) * timeline.slice_seconds;
      chart.series[0].points.emplace_back(middle, values[i]);
    }
    return RenderSvg(chart);
  };
  const std::string caption =
      absl::StrCat(NameLoad(run.plan), ", slices of ", ShortNumber(timeline.slice_seconds),
                   " s, warm-up included.");
  std::string html = Figure("Throughput along the run", caption,
                            chart_of("output tokens/s", timeline.output_tokens_per_second)) +
                     Figure("Running requests", caption,
                            chart_of("requests in flight", timeline.running_requests));
  const bool any_errors = std::any_of(timeline.errors.begin(), timeline.errors.end(),
                                      [](double errors) { return errors > 0; });
  if (any_errors) {
    absl::StrAppend(&html, Figure("Errors along the run", caption,
                                  chart_of("errors in a slice", timeline.errors)));
  }
  return html;
}

std::string RunTable(const std::vector<LoadSummary>& runs) {
  std::string html =
      "<h2>All runs</h2>\n<div class=\"wide\"><table>\n<thead><tr><th>Load</th><th>Output, "
      "tokens/s</th><th>Requests/s</th><th>Goodput/s</th><th>First token, ms: median</th><th>90%"
      "</th><th>99%</th><th>Between tokens, ms: median</th><th>90%</th><th>99%</th><th>End to end, "
      "ms: median</th><th>99%</th><th>Errors</th><th>Client, cores</th></tr></thead>\n<tbody>\n";
  for (const LoadSummary& run : runs) {
    absl::StrAppend(&html, "<tr><th>", EscapeHtml(NameLoad(run.plan)), "</th>");
    for (const std::string& cell :
         {ShortNumber(run.output_tokens_per_second), ShortNumber(run.requests_per_second),
          ShortNumber(run.good_requests_per_second), Milliseconds(run.time_to_first_token.p50),
          Milliseconds(run.time_to_first_token.p90), Milliseconds(run.time_to_first_token.p99),
          Milliseconds(run.inter_token.p50), Milliseconds(run.inter_token.p90),
          Milliseconds(run.inter_token.p99), Milliseconds(run.end_to_end.p50),
          Milliseconds(run.end_to_end.p99), WithSpaces(NumErrors(run)),
          ShortNumber(run.client.wall_seconds > 0 ? run.client.cpu_seconds / run.client.wall_seconds
                                                  : 0)}) {
      absl::StrAppend(&html, "<td>", cell, "</td>");
    }
    absl::StrAppend(&html, "</tr>\n");
  }
  return absl::StrCat(html, "</tbody></table></div>\n");
}

}  // namespace

std::string NameLoad(const SchedulePlan& plan) {
  switch (plan.loop) {
    case LoadLoop::kClosed:
      return absl::StrCat("closed loop, ", plan.concurrency, " in flight");
    case LoadLoop::kOpen:
      return absl::StrFormat("open loop, %g/s %s", plan.rate,
                             plan.arrivals == ArrivalProcess::kPoisson ? "poisson" : "constant");
    case LoadLoop::kTrace:
      break;
  }
  return "trace";
}

std::string LoadHtml(const std::string& title, const std::string& subtitle,
                     const std::vector<LoadSummary>& runs) {
  std::string body;
  if (runs.size() == 1) {
    const LoadSummary& run = runs.front();
    body = absl::StrCat(Tiles(run), Notes(run), DistributionsOfOneRun(run), Timeline(run));
  } else {
    body = absl::StrCat(
        LatencyAgainstThroughput(runs, "Time to first token", &LoadSummary::time_to_first_token),
        LatencyAgainstThroughput(runs, "Time between tokens", &LoadSummary::inter_token),
        DistributionsOfRuns(runs));
    for (const LoadSummary& run : runs) {
      absl::StrAppend(&body, "<h1>", EscapeHtml(Capitalized(NameLoad(run.plan))), "</h1>\n",
                      Tiles(run), Notes(run), Timeline(run));
    }
  }
  return HtmlPage(
      title,
      runs.size() == 1 ? absl::StrCat(subtitle, "; ", NameLoad(runs.front().plan)) : subtitle,
      absl::StrCat(body, RunTable(runs)));
}

}  // namespace ultrasketch
