#include "engine/report/compression_page.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/compress/absmaxmin_plan.h"
#include "engine/models/layer_table.h"
#include "engine/report/chart_scale.h"
#include "engine/report/html_page.h"
#include "engine/report/svg_chart.h"

namespace ultrasketch {
namespace {

using nlohmann::ordered_json;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr const char* kKindLabels[kNumSiteKinds] = {"attention input", "attention output",
                                                    "MLP input", "MLP output"};

// A site of the report and where it is in the model.
struct PlacedSite {
  LinearSite place;
  const CompressedSite* site;
  double share;  // of all sites' bytes
};

std::vector<PlacedSite> PlaceSites(const CompressionSummary& summary) {
  int64_t total = 0;
  for (const CompressedSite& site : summary.report.sites) total += site.bytes;
  std::vector<PlacedSite> placed;
  for (LinearSite& place : LinearSites(summary.config)) {
    for (const CompressedSite& site : summary.report.sites) {
      if (site.name != place.name) continue;
      const double share =
          total == 0 ? 0 : static_cast<double>(site.bytes) / static_cast<double>(total);
      placed.push_back({std::move(place), &site, share});
      break;
    }
  }
  return placed;
}

ordered_json NumberOrNull(double value) {
  return std::isfinite(value) ? ordered_json(value) : ordered_json();
}

ordered_json EvaluationJson(const Evaluation& evaluation) {
  return {{"perplexity", NumberOrNull(evaluation.perplexity)},
          {"nll", NumberOrNull(evaluation.nll)},
          {"tokens", evaluation.tokens},
          {"tokens_per_second", NumberOrNull(evaluation.tokens_per_second)}};
}

// ---- HTML

std::string Duration(double seconds) {
  if (seconds < 120) return absl::StrFormat("%.1f s", seconds);
  const auto minutes = static_cast<int64_t>(seconds / 60);
  if (minutes < 120) {
    return absl::StrFormat("%d min %.0f s", minutes,
                           std::floor(seconds - 60 * static_cast<double>(minutes)));
  }
  return absl::StrFormat("%d h %d min", minutes / 60, minutes % 60);
}

std::string FileName(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

std::string CalibrationNote(const CompressionSummary& summary) {
  if (summary.report.calibration_source == "files") {
    std::vector<std::string> names;
    for (const std::string& file : summary.options.calibration_files) {
      names.push_back(FileName(file));
    }
    return absl::StrCat("tokens of ", absl::StrJoin(names, ", "));
  }
  return summary.report.calibration_source == "none" ? "fitted to the weights alone"
                                                     : "tokens that the model wrote itself";
}

std::string Tiles(const CompressionSummary& summary) {
  const CompressionReport& report = summary.report;
  std::string html = "<dl class=\"tiles\">\n";
  absl::StrAppend(
      &html,
      Tile("Bits per weight, linear layers", absl::StrFormat("%.4f", report.bits_per_weight_linear),
           absl::StrCat("at most ", absl::StrFormat("%g", summary.options.bits_per_weight),
                        " asked for; scales and side data included")),
      Tile("Bits per weight, files", absl::StrFormat("%.4f", report.bits_per_weight_file),
           "over all parameters, embeddings included"),
      Tile("Size on disk", HumanBytes(static_cast<double>(report.bytes)),
           absl::StrFormat("dense %s: %.1f times smaller",
                           HumanBytes(static_cast<double>(summary.dense_bytes)),
                           static_cast<double>(summary.dense_bytes) /
                               static_cast<double>(std::max<int64_t>(1, report.bytes)))));
  if (summary.evaluation.has_value()) {
    const EvaluationPair& pair = *summary.evaluation;
    absl::StrAppend(
        &html,
        Tile("Perplexity, dense → compressed",
             absl::StrFormat("%.4g → %.4g", pair.dense.perplexity, pair.compressed.perplexity),
             absl::StrCat(ShortNumber(pair.compressed.perplexity / pair.dense.perplexity),
                          " times, on ", WithSpaces(pair.compressed.tokens), " tokens of ",
                          pair.text_name, ", context ", pair.context)));
  }
  absl::StrAppend(
      &html,
      Tile("Time to compress", Duration(report.seconds),
           report.resumed_layers == 0
               ? "without evaluation"
               : absl::StrCat("of this run; ", report.resumed_layers, " layers were done before")),
      Tile("Calibration",
           report.calibration_source == "none" ? "none" : WithSpaces(report.calibration_tokens),
           CalibrationNote(summary)),
      "</dl>\n");
  for (const std::string& warning : report.warnings) {
    absl::StrAppend(&html, "<p class=\"none\">Warning: ", EscapeHtml(warning), ".</p>\n");
  }
  return html;
}

std::string NothingMeasured(const CompressionSummary& summary) {
  return absl::StrCat("<p class=\"none\">Not measured: the model was fitted to ",
                      summary.report.calibration_source == "none"
                          ? "its weights alone"
                          : "too few tokens for the errors on them to mean anything",
                      ".</p>\n");
}

std::vector<std::string> LayerNames(const ModelConfig& config) {
  std::vector<std::string> names;
  names.reserve(static_cast<size_t>(config.num_layers));
  for (int layer = 0; layer < config.num_layers; ++layer) names.push_back(absl::StrCat(layer));
  return names;
}

// [kind][layer] of what `value` gives for a site.
template <typename Value>
std::vector<std::vector<double>> ByKindAndLayer(const ModelConfig& config,
                                                const std::vector<PlacedSite>& sites,
                                                const Value& value, double otherwise) {
  std::vector<std::vector<double>> values(
      kNumSiteKinds, std::vector<double>(static_cast<size_t>(config.num_layers), otherwise));
  for (const PlacedSite& site : sites) {
    values[static_cast<size_t>(site.place.kind)][static_cast<size_t>(site.place.layer)] =
        value(site);
  }
  return values;
}

std::string BitsFigure(const CompressionSummary& summary, const std::vector<PlacedSite>& sites) {
  HeatMap map;
  map.description = "Bits per weight of every layer and kind of site";
  map.x_label = "layer";
  map.value_label = "bits per weight";
  map.columns = LayerNames(summary.config);
  map.rows.assign(kKindLabels, kKindLabels + kNumSiteKinds);
  map.values = ByKindAndLayer(
      summary.config, sites, [](const PlacedSite& site) { return site.site->bits_per_weight; },
      kNaN);
  return Figure("Bits per weight",
                "All that stands in for a site's weights: bits, scales, side data, padding.",
                RenderSvg(map));
}

std::string OutputErrorFigure(const CompressionSummary& summary,
                              const std::vector<PlacedSite>& sites) {
  LineChart chart;
  chart.description = "Relative output error of every kind of site along the layers";
  chart.x_label = "layer";
  chart.y_label = "relative output error";
  const auto values = ByKindAndLayer(
      summary.config, sites,
      [](const PlacedSite& site) { return site.site->relative_output_error; }, kNaN);
  bool any = false;
  for (size_t kind = 0; kind < values.size(); ++kind) {
    ChartSeries series = {kKindLabels[kind], {}};
    for (size_t layer = 0; layer < values[kind].size(); ++layer) {
      series.points.emplace_back(static_cast<double>(layer), values[kind][layer]);
      any = any || std::isfinite(values[kind][layer]);
    }
    chart.series.push_back(std::move(series));
  }
  return Figure(
      "Output error",
      "|y' − y|² / |y|² over the calibration tokens: y is what the site was fitted to, y' "
      "what it gives. For attention output and MLP output, y is what the residual "
      "stream lacks to reach the dense model's, earlier sites' errors included.",
      any ? RenderSvg(chart) : NothingMeasured(summary));
}

std::string ResidualFigure(const CompressionSummary& summary,
                           const std::vector<PlacedSite>& sites) {
  LineChart chart;
  chart.description = "Relative error of the residual stream along the depth of the model";
  chart.x_label = "layers passed";
  chart.y_label = "relative error";
  ChartSeries series = {"residual stream", {}};
  for (const PlacedSite& site : sites) {
    if (!std::isfinite(site.site->relative_residual_error)) continue;
    const double passed = site.place.kind == SiteKind::kAttentionOutput ? 0.5 : 1;
    series.points.emplace_back(site.place.layer + passed, site.site->relative_residual_error);
  }
  const bool any = !series.points.empty();
  chart.series.push_back(std::move(series));
  return Figure("Residual stream",
                "|h' − h|² / |h|² of the residual stream, compressed h' and dense h, after the "
                "attention (half a layer) and after the MLP of every layer.",
                any ? RenderSvg(chart) : NothingMeasured(summary));
}

std::string ShareFigure(const CompressionSummary& summary, const std::vector<PlacedSite>& sites) {
  StackedBarChart chart;
  chart.description = "Share of the bytes of the linear layers by layer and kind of site";
  chart.x_label = "layer";
  chart.y_label = "share of the bytes, %";
  chart.categories = LayerNames(summary.config);
  chart.series.assign(kKindLabels, kKindLabels + kNumSiteKinds);
  chart.values = ByKindAndLayer(
      summary.config, sites, [](const PlacedSite& site) { return 100 * site.share; }, 0);
  return Figure("Share of the budget",
                "Of the bytes that stand in for the weights of all linear layers.",
                RenderSvg(chart));
}

std::string SiteTable(const std::vector<PlacedSite>& sites) {
  std::string html =
      "<h2>All sites</h2>\n<div class=\"wide\"><table>\n<thead><tr><th>Site</th><th>Rows</th>"
      "<th>Columns</th><th>Bytes</th><th>Share, %</th><th>Bits per weight</th>"
      "<th>Weight error</th><th>Output error</th><th>Residual error</th></tr></thead>\n<tbody>\n";
  for (const PlacedSite& placed : sites) {
    const CompressedSite& site = *placed.site;
    absl::StrAppend(&html, "<tr><th>", EscapeHtml(site.name), "</th>");
    for (const std::string& cell :
         {WithSpaces(site.rows), WithSpaces(site.cols), WithSpaces(site.bytes),
          absl::StrFormat("%.2f", 100 * placed.share),
          absl::StrFormat("%.4f", site.bits_per_weight), ShortNumber(site.relative_weight_error),
          ShortNumber(site.relative_output_error), ShortNumber(site.relative_residual_error)}) {
      absl::StrAppend(&html, "<td>", cell, "</td>");
    }
    absl::StrAppend(&html, "</tr>\n");
  }
  return absl::StrCat(html,
                      "</tbody></table></div>\n<p class=\"note\">Errors are |difference|² / "
                      "|original|².</p>\n");
}

}  // namespace

ReportFiles NameReportFiles(std::string_view path) {
  for (const std::string_view extension : {".html", ".json"}) {
    const bool is_more_than_that =
        path.size() > extension.size() && path[path.size() - extension.size() - 1] != '/';
    if (is_more_than_that && path.ends_with(extension)) {
      path.remove_suffix(extension.size());
      break;
    }
  }
  return {std::string(path) + ".html", std::string(path) + ".json"};
}

absl::Status CheckReportFiles(const ReportFiles& files) {
  for (const std::string& path : {files.html, files.json}) {
    std::error_code error;
    if (std::filesystem::is_directory(path, error)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": expected the name of a file to write, found a folder"));
    }
    US_RETURN_IF_ERROR(AtomicFileWriter::Create(path).status());
  }
  return absl::OkStatus();
}

ordered_json CompressionJson(const CompressionSummary& summary) {
  const CompressOptions& options = summary.options;
  ordered_json option_values = {{"codec", options.codec},
                                {"bits", options.bits_per_weight},
                                {"seed", options.seed},
                                {"embedding", options.embedding},
                                {"head", options.head},
                                {"calibration", options.calibration_files},
                                {"calibration_windows", options.calibration_windows},
                                {"calibration_window_tokens", options.calibration_window_tokens},
                                {"add_special_tokens", options.add_special_tokens}};
  if (options.codec == "absmaxmin") {
    option_values["hash_rows"] = options.absmaxmin_hash_rows;
    option_values["bucket_bits"] = options.absmaxmin_bucket_bits;
    option_values["own_share"] = options.absmaxmin_own_share;
  }
  ordered_json json = {
      {"model", summary.model_name},        {"compressed", summary.compressed_name},
      {"options", option_values},           {"layers", summary.config.num_layers},
      {"dense_bytes", summary.dense_bytes},
  };
  ordered_json evaluation;
  if (summary.evaluation.has_value()) {
    const EvaluationPair& pair = *summary.evaluation;
    evaluation = {
        {"text", pair.text_name},
        {"context", pair.context},
        {"tokens", pair.compressed.tokens},
        {"perplexity_before", NumberOrNull(pair.dense.perplexity)},
        {"perplexity_after", NumberOrNull(pair.compressed.perplexity)},
        {"perplexity_ratio", NumberOrNull(pair.compressed.perplexity / pair.dense.perplexity)},
        {"dense", EvaluationJson(pair.dense)},
        {"compressed", EvaluationJson(pair.compressed)},
    };
  }
  json["evaluation"] = std::move(evaluation);
  const nlohmann::json report = ToJson(summary.report);
  for (const auto& [key, value] : report.items()) {
    if (key != "sites") json[key] = value;
  }
  ordered_json sites = ordered_json::array();
  for (const PlacedSite& placed : PlaceSites(summary)) {
    const CompressedSite& site = *placed.site;
    sites.push_back({{"name", site.name},
                     {"layer", placed.place.layer},
                     {"kind", std::string(SiteKindName(placed.place.kind))},
                     {"rows", site.rows},
                     {"cols", site.cols},
                     {"bytes", site.bytes},
                     {"share", placed.share},
                     {"bits_per_weight", site.bits_per_weight},
                     {"relative_weight_error", NumberOrNull(site.relative_weight_error)},
                     {"relative_output_error", NumberOrNull(site.relative_output_error)},
                     {"relative_residual_error", NumberOrNull(site.relative_residual_error)}});
  }
  json["sites"] = std::move(sites);
  return json;
}

namespace {

// The codec with its options.
std::string CodecText(const CompressOptions& options) {
  if (options.codec != "absmaxmin") return options.codec;
  return absl::StrFormat("%s (%d hash rows, %d bits a bucket, own share %g)", options.codec,
                         options.absmaxmin_hash_rows,
                         options.absmaxmin_bucket_bits != 0
                             ? options.absmaxmin_bucket_bits
                             : BucketBitsFor(options.bits_per_weight),
                         options.absmaxmin_own_share);
}

}  // namespace

std::string CompressionHtml(const CompressionSummary& summary) {
  const std::vector<PlacedSite> sites = PlaceSites(summary);
  const std::string title = absl::StrFormat("%s at %.3f bits per weight", summary.model_name,
                                            summary.report.bits_per_weight_linear);
  return HtmlPage(
      title,
      absl::StrCat(summary.compressed_name, ": codec ", CodecText(summary.options), ", seed ",
                   summary.options.seed, ". ", summary.config.model_type, ", ",
                   WithSpaces(summary.report.parameters), " parameters, ",
                   summary.config.num_layers, " layers, hidden size ", summary.config.hidden_size,
                   "."),
      absl::StrCat(Tiles(summary), BitsFigure(summary, sites), OutputErrorFigure(summary, sites),
                   ResidualFigure(summary, sites), ShareFigure(summary, sites), SiteTable(sites)));
}

absl::Status WriteCompressionReport(const CompressionSummary& summary, const ReportFiles& files) {
  US_RETURN_IF_ERROR(WriteFileAtomically(files.html, CompressionHtml(summary)));
  return WriteFileAtomically(
      files.json,
      CompressionJson(summary).dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n");
}

}  // namespace ultrasketch
