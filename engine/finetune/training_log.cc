#include "engine/finetune/training_log.h"

#include <algorithm>
#include <fstream>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/format/json.h"
#include "engine/report/svg_chart.h"

namespace ultrasketch {
namespace {

// Points of a curve; more records are averaged.
constexpr size_t kMaxPoints = 80;

using Points = std::vector<std::pair<double, double>>;

nlohmann::ordered_json ToJson(const TrainingRecord& record) {
  return {{"step", record.step},
          {"tokens", record.tokens},
          {"seconds", record.seconds},
          {"loss", record.loss},
          {"hidden_loss", record.hidden_loss},
          {"gradient_norm", record.gradient_norm},
          {"learning_rate", record.learning_rate},
          {"tokens_per_second", record.tokens_per_second}};
}

nlohmann::ordered_json ToJson(const EvaluationRecord& record) {
  return {{"step", record.step}, {"tokens", record.tokens}, {"perplexity", record.perplexity}};
}

double Number(const nlohmann::json& object, const char* key) {
  const nlohmann::json* value = FindMember(object, key);
  return value != nullptr && value->is_number() ? value->get<double>() : 0;
}

int64_t Count(const nlohmann::json& object, const char* key) {
  return static_cast<int64_t>(Number(object, key));
}

// Means of runs of points, at most kMaxPoints of them.
Points Thinned(const Points& points) {
  const size_t run = (points.size() + kMaxPoints - 1) / kMaxPoints;
  if (run <= 1) return points;
  Points thinned;
  for (size_t first = 0; first < points.size(); first += run) {
    const size_t end = std::min(first + run, points.size());
    std::pair<double, double> sum = {0, 0};
    for (size_t i = first; i < end; ++i) {
      sum.first += points[i].first;
      sum.second += points[i].second;
    }
    const auto count = static_cast<double>(end - first);
    thinned.emplace_back(sum.first / count, sum.second / count);
  }
  return thinned;
}

// A chart that is a document of its own.
std::string Standalone(const LineChart& chart) {
  std::string svg = RenderSvg(chart);
  const size_t tag = svg.find("<svg");
  const size_t end = tag == std::string::npos ? tag : svg.find('>', tag);
  if (end == std::string::npos) return svg;
  if (svg.substr(tag, end - tag).find("xmlns=") == std::string::npos) {
    svg.insert(tag + 4, " xmlns=\"http://www.w3.org/2000/svg\"");
  }
  svg.insert(svg.find('>', tag) + 1,
             absl::StrCat("<style>", ChartStyleSheet(),
                          "svg{font-family:sans-serif;background:var(--page)}</style>"));
  return svg;
}

}  // namespace

std::string TrainingLog::path() const { return folder_ + "/training.jsonl"; }

absl::Status TrainingLog::Begin() {
  training_.clear();
  evaluations_.clear();
  return WriteFileAtomically(path(), "");
}

absl::Status TrainingLog::Continue(int64_t last_step) {
  training_.clear();
  evaluations_.clear();
  US_ASSIGN_OR_RETURN(const std::string text, ReadFile(path()));
  std::string kept;
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    // The last line may have been cut short.
    const absl::StatusOr<nlohmann::json> record = ParseJson(S(line), path());
    if (!record.ok() || !record->is_object() || Count(*record, "step") > last_step) continue;
    if (FindMember(*record, "perplexity") != nullptr) {
      evaluations_.push_back(
          {Count(*record, "step"), Count(*record, "tokens"), Number(*record, "perplexity")});
    } else {
      training_.push_back({Count(*record, "step"), Count(*record, "tokens"),
                           Number(*record, "seconds"), Number(*record, "loss"),
                           Number(*record, "hidden_loss"), Number(*record, "gradient_norm"),
                           Number(*record, "learning_rate"), Number(*record, "tokens_per_second")});
    }
    absl::StrAppend(&kept, line, "\n");
  }
  return WriteFileAtomically(path(), kept);
}

absl::Status TrainingLog::Append(const std::string& line) const {
  std::ofstream out(path(), std::ios::app | std::ios::binary);
  out << line << "\n";
  out.flush();
  return out.good() ? absl::OkStatus() : absl::InternalError(path() + ": writing failed");
}

absl::Status TrainingLog::Add(const TrainingRecord& record) {
  training_.push_back(record);
  return Append(ToJson(record).dump());
}

absl::Status TrainingLog::Add(const EvaluationRecord& record) {
  evaluations_.push_back(record);
  return Append(ToJson(record).dump());
}

absl::Status TrainingLog::WriteCurves() const {
  Points losses;
  for (const TrainingRecord& record : training_) {
    losses.emplace_back(static_cast<double>(record.tokens) / 1e6, record.loss);
  }
  Points perplexities;
  for (const EvaluationRecord& record : evaluations_) {
    perplexities.emplace_back(static_cast<double>(record.tokens) / 1e6, record.perplexity);
  }
  US_RETURN_IF_ERROR(WriteFileAtomically(
      folder_ + "/loss.svg",
      Standalone({.description = "Divergence from the dense model's predictions during training",
                  .x_label = "million tokens",
                  .y_label = "divergence, nats a token",
                  .series = {{"training text", Thinned(losses)}}})));
  return WriteFileAtomically(
      folder_ + "/perplexity.svg",
      Standalone({.description = "Perplexity on the held-out text during training",
                  .x_label = "million tokens",
                  .y_label = "perplexity",
                  .series = {{"held-out text", Thinned(perplexities)}}}));
}

}  // namespace ultrasketch
