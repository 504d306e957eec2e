#include "engine/compress/compressor.h"

#include <chrono>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

#include "engine/base/status.h"
#include "engine/base/thread_pool.h"
#include "engine/compress/accounting.h"
#include "engine/compress/fold_encoder.h"
#include "engine/compress/model_writer.h"
#include "engine/models/linear_sites.h"

namespace ultrasketch {
namespace {

using nlohmann::json;

constexpr int kFormatVersion = 1;

absl::Status ValidateOptions(const Checkpoint& checkpoint, const CompressOptions& options) {
  if (options.codec != "fold") {
    return absl::InvalidArgumentError(
        absl::StrCat("codec: expected \"fold\", found ", Quoted(options.codec)));
  }
  if (!std::isfinite(options.bits_per_weight) || options.bits_per_weight <= 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "bits per weight: expected a positive number, found ", options.bits_per_weight));
  }
  if (options.calibration_windows < 0 || options.calibration_window_tokens < 1 ||
      options.num_threads < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "expected at least 0 calibration windows, 1 token in each and 0 threads, found ",
        options.calibration_windows, ", ", options.calibration_window_tokens, " and ",
        options.num_threads));
  }
  US_ASSIGN_OR_RETURN(const std::string codec, CheckpointCodec(checkpoint));
  if (codec != "dense") {
    return absl::InvalidArgumentError(absl::StrCat(
        checkpoint.folder(), ": expected an uncompressed model, found one in codec ", codec));
  }
  return absl::OkStatus();
}

bool Cancelled(const CompressOptions& options) {
  return options.cancelled != nullptr && options.cancelled->load(std::memory_order_relaxed);
}

void Report(const CompressOptions& options, std::string_view stage, double fraction) {
  if (options.progress) options.progress({stage, fraction});
}

struct EncodedSites {
  std::vector<std::unique_ptr<EncodedLinear>> sites;
  std::vector<CompressedSite> reports;
};

CompressedSite SiteReport(const EncodedLinear& encoded) {
  const LinearSite& site = encoded.site();
  CompressedSite report;
  report.name = site.name;
  report.rows = site.rows;
  report.cols = site.cols;
  report.bits_per_weight =
      8.0 * static_cast<double>(encoded.stored_bytes()) / static_cast<double>(site.num_weights());
  report.relative_output_error = std::numeric_limits<double>::quiet_NaN();
  return report;
}

absl::StatusOr<EncodedSites> EncodeFromWeights(const Checkpoint& checkpoint,
                                               absl::Span<const LinearSite> sites,
                                               const CompressOptions& options, ThreadPool& pool) {
  US_ASSIGN_OR_RETURN(const std::vector<FoldShape> shapes,
                      PlanFold(sites, options.bits_per_weight, /*ranked=*/false));
  EncodedSites result;
  for (size_t index = 0; index < sites.size(); ++index) {
    if (Cancelled(options)) return absl::CancelledError("compression was cancelled");
    const LinearSite& site = sites[index];
    Report(options, site.name, static_cast<double>(index) / static_cast<double>(sites.size()));
    US_ASSIGN_OR_RETURN(const std::vector<float> weights, ReadSiteWeights(site, checkpoint));
    FoldLayout layout = ChooseFoldLayout(site, shapes[index], options.seed, {});
    FoldMoments moments;
    AddWeightMoments(layout, weights, 1.0, moments);
    FoldFit fit = FitFold(moments, {}, pool);
    result.sites.push_back(
        FoldLinear::FromParts(site, std::move(layout), std::move(fit.bits), fit.scales));
    result.reports.push_back(SiteReport(*result.sites.back()));
    result.reports.back().relative_weight_error =
        RelativeWeightError(*result.sites.back(), weights, pool);
  }
  return result;
}

}  // namespace

absl::StatusOr<CompressionReport> CompressCheckpoint(std::shared_ptr<const Checkpoint> checkpoint,
                                                     const std::string& out_folder,
                                                     const CompressOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  US_RETURN_IF_ERROR(ValidateOptions(*checkpoint, options));
  US_RETURN_IF_ERROR(CheckOutputFolder(*checkpoint, out_folder, options.overwrite));
  const std::vector<LinearSite> sites = LinearSites(checkpoint->config());
  ThreadPool pool(options.num_threads);

  CompressionReport report;
  report.calibration_source = "none";
  US_ASSIGN_OR_RETURN(EncodedSites encoded, EncodeFromWeights(*checkpoint, sites, options, pool));
  if (Cancelled(options)) return absl::CancelledError("compression was cancelled");

  Report(options, "writing", 1.0);
  const json quantization_config = {{"quant_method", kQuantMethod},
                                    {"version", kFormatVersion},
                                    {"codec", options.codec},
                                    {"seed", options.seed},
                                    {"bits", options.bits_per_weight}};
  US_RETURN_IF_ERROR(WriteCompressedModel(*checkpoint, encoded.sites, {}, quantization_config,
                                          out_folder, options.overwrite));
  // What was written is measured as anybody else would read it.
  US_ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> written,
                      Checkpoint::Open(out_folder));
  US_ASSIGN_OR_RETURN(const ModelSize size, MeasureModel(*written));
  report.bits_per_weight_linear = size.bits_per_weight_linear;
  report.bits_per_weight_file = size.bits_per_weight_file;
  report.bytes = size.file_bytes;
  report.parameters = size.parameters;
  report.sites = std::move(encoded.reports);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

json ToJson(const CompressionReport& report) {
  const auto number = [](double value) { return std::isfinite(value) ? json(value) : json(); };
  json sites = json::array();
  for (const CompressedSite& site : report.sites) {
    sites.push_back({{"name", site.name},
                     {"rows", site.rows},
                     {"cols", site.cols},
                     {"bits_per_weight", site.bits_per_weight},
                     {"relative_weight_error", number(site.relative_weight_error)},
                     {"relative_output_error", number(site.relative_output_error)}});
  }
  return {{"bits_per_weight_linear", report.bits_per_weight_linear},
          {"bits_per_weight_file", report.bits_per_weight_file},
          {"bytes", report.bytes},
          {"seconds", report.seconds},
          {"parameters", report.parameters},
          {"calibration_tokens", report.calibration_tokens},
          {"calibration_source", report.calibration_source},
          {"sites", std::move(sites)}};
}

}  // namespace ultrasketch
