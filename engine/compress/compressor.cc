#include "engine/compress/compressor.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <limits>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"

#include "engine/backends/backend.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/base/thread_pool.h"
#include "engine/compress/absmaxmin_encoder.h"
#include "engine/compress/absmaxmin_plan.h"
#include "engine/compress/accounting.h"
#include "engine/compress/calibration.h"
#include "engine/compress/compression_memory.h"
#include "engine/compress/fit_description.h"
#include "engine/compress/fit_journal.h"
#include "engine/compress/fold_encoder.h"
#include "engine/compress/layer_fit.h"
#include "engine/compress/model_writer.h"
#include "engine/compress/sensitivity.h"
#include "engine/compress/site_importance.h"
#include "engine/compress/site_moments.h"
#include "engine/compress/table_compression.h"
#include "engine/format/tokenizer/tokenizer_folder.h"
#include "engine/models/checkpoint_codec.h"
#include "engine/models/layer_table.h"
#include "engine/models/model.h"

namespace ultrasketch {
namespace {

using nlohmann::json;

constexpr int64_t kMostCalibrationTokens = int64_t{1} << 40;

// The part of the time that measuring sensitivities takes.
constexpr double kSensitivityShare = 0.15;

absl::Status ValidateAbsMaxMin(const CompressOptions& options) {
  if (options.absmaxmin_hash_rows < 1 || options.absmaxmin_hash_rows > kMaxHashRows) {
    return absl::InvalidArgumentError(absl::StrCat("hash rows: expected 1 to ", kMaxHashRows,
                                                   ", found ", options.absmaxmin_hash_rows));
  }
  const int64_t bits = options.absmaxmin_bucket_bits;
  if (bits != 0 && (bits < kMinBucketBits || bits > kMaxBucketBits)) {
    return absl::InvalidArgumentError(absl::StrCat("bucket bits: expected 0 or ", kMinBucketBits,
                                                   " to ", kMaxBucketBits, ", found ", bits));
  }
  if (!(options.absmaxmin_own_share >= 0 && options.absmaxmin_own_share <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "own share: expected a number from 0 to 1, found ", options.absmaxmin_own_share));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<SiteEncoder>> MakeAbsMaxMinEncoder(
    absl::Span<const LinearSite> sites, absl::Span<const double> importance,
    const CompressOptions& options) {
  const AbsMaxMinStyle style = {options.absmaxmin_hash_rows,
                                options.absmaxmin_bucket_bits > 0
                                    ? options.absmaxmin_bucket_bits
                                    : BucketBitsFor(options.bits_per_weight),
                                options.absmaxmin_own_share};
  US_ASSIGN_OR_RETURN(auto classes,
                      PlanAbsMaxMin(sites, importance, options.bits_per_weight, style));
  return std::make_unique<AbsMaxMinEncoder>(sites, std::move(classes), options.seed);
}

absl::StatusOr<std::unique_ptr<SiteEncoder>> MakeFoldEncoder(absl::Span<const LinearSite> sites,
                                                             absl::Span<const double> importance,
                                                             const CompressOptions& options) {
  US_ASSIGN_OR_RETURN(std::vector<FoldShape> shapes,
                      PlanFold(sites, importance, options.bits_per_weight,
                               /*ranked=*/options.calibration_windows > 0));
  return std::make_unique<FoldEncoder>(sites, std::move(shapes), options.seed);
}

// The codecs that can be encoded.
struct EncodableCodec {
  std::string_view name;
  absl::Status (*validate)(const CompressOptions& options);  // of its own options; null: has none
  // An encoder with the budget of bits spread over the sites already.
  absl::StatusOr<std::unique_ptr<SiteEncoder>> (*make_encoder)(absl::Span<const LinearSite> sites,
                                                               absl::Span<const double> importance,
                                                               const CompressOptions& options);
};

constexpr EncodableCodec kEncodableCodecs[] = {
    {"fold", nullptr, MakeFoldEncoder},
    {"absmaxmin", ValidateAbsMaxMin, MakeAbsMaxMinEncoder},
};

const EncodableCodec* FindEncodableCodec(std::string_view name) {
  for (const EncodableCodec& codec : kEncodableCodecs) {
    if (codec.name == name) return &codec;
  }
  return nullptr;
}

absl::Status ValidateOptions(const Checkpoint& checkpoint, const CompressOptions& options) {
  const EncodableCodec* const encodable = FindEncodableCodec(options.codec);
  if (encodable == nullptr) {
    std::vector<std::string> names;
    for (const EncodableCodec& known : kEncodableCodecs) names.push_back(Quoted(known.name));
    return absl::InvalidArgumentError(absl::StrCat("codec: expected ", absl::StrJoin(names, " or "),
                                                   ", found ", Quoted(options.codec)));
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
  // Their product is a number of tokens, and bytes of memory a few thousand times that.
  if (options.calibration_windows > kMostCalibrationTokens / options.calibration_window_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "calibration windows: expected at most ", kMostCalibrationTokens, " tokens in all, found ",
        options.calibration_windows, " windows of ", options.calibration_window_tokens));
  }
  if (encodable->validate != nullptr) US_RETURN_IF_ERROR(encodable->validate(options));
  US_ASSIGN_OR_RETURN(const std::string codec, CheckpointCodec(checkpoint));
  if (codec != "dense") {
    return absl::InvalidArgumentError(absl::StrCat(
        checkpoint.folder(), ": expected an uncompressed model, found one in codec ", codec));
  }
  return absl::OkStatus();
}

// Before the work rather than when their turn comes.
absl::Status CheckTensors(const Checkpoint& checkpoint, absl::Span<const LinearSite> sites) {
  for (const LinearSite& site : sites) {
    for (const SiteMember& member : site.members) {
      US_RETURN_IF_ERROR(
          GetTensor(checkpoint, member.name + ".weight", {}, {member.rows, site.cols}).status());
    }
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
  std::vector<ReplacedTensor> replaced;
  std::vector<std::shared_ptr<const TensorSource>> sources;  // what the sites may refer to
};

// Reports progress. CANCELLED when that is asked for.
absl::Status Continue(const CompressOptions& options, std::string_view stage, double fraction) {
  if (Cancelled(options)) return absl::CancelledError("compression was cancelled");
  Report(options, stage, fraction);
  return absl::OkStatus();
}

absl::Status StartSite(absl::Span<const LinearSite> sites, size_t index,
                       const CompressOptions& options) {
  const double done = static_cast<double>(index) / static_cast<double>(sites.size());
  return Continue(options, sites[index].name, kSensitivityShare + (1 - kSensitivityShare) * done);
}

CompressedSite SiteReport(const EncodedLinear& encoded) {
  const LinearSite& site = encoded.site();
  CompressedSite report;
  report.name = site.name;
  report.rows = site.rows;
  report.cols = site.cols;
  report.bits_per_weight =
      8.0 * static_cast<double>(encoded.stored_bytes()) / static_cast<double>(site.num_weights());
  report.bytes = encoded.stored_bytes();
  report.relative_output_error = std::numeric_limits<double>::quiet_NaN();
  report.relative_residual_error = std::numeric_limits<double>::quiet_NaN();
  return report;
}

absl::StatusOr<EncodedSites> EncodeFromWeights(const Checkpoint& checkpoint,
                                               absl::Span<const LinearSite> sites,
                                               const SiteEncoder& encoder,
                                               const CompressOptions& options, FitDevice& device,
                                               ThreadPool& pool) {
  EncodedSites result;
  for (size_t index = 0; index < sites.size(); ++index) {
    US_RETURN_IF_ERROR(StartSite(sites, index, options));
    const LinearSite& site = sites[index];
    US_ASSIGN_OR_RETURN(const std::vector<float> weights, ReadSiteWeights(site, checkpoint));
    US_ASSIGN_OR_RETURN(const auto dense, device.LoadDense(site, weights, {}));
    US_ASSIGN_OR_RETURN(const auto moments,
                        device.LoadMoments(site, *dense, WeightMoments(site, weights)));
    US_ASSIGN_OR_RETURN(auto encoded, encoder.Encode(index, weights, *moments, pool));
    result.sites.push_back(std::move(encoded));
    result.reports.push_back(SiteReport(*result.sites.back()));
    result.reports.back().relative_weight_error =
        RelativeWeightError(*result.sites.back(), weights, pool);
  }
  return result;
}

// What the dense model writes, in bfloat16 or whatever it is stored in.
absl::StatusOr<CalibrationText> SampleFromModel(const std::shared_ptr<const Checkpoint>& checkpoint,
                                                int64_t window_tokens,
                                                const CompressOptions& options,
                                                const FitDevice& device) {
  BackendOptions backend_options;
  backend_options.num_threads = options.num_threads;
  US_ASSIGN_OR_RETURN(const std::shared_ptr<Backend> backend,
                      CreateBackend(device.name(), backend_options));
  ModelOptions model_options;
  const int64_t windows =
      SampledWindowsAtOnce(checkpoint->config(), options, device.name() != "cpu");
  model_options.max_step_tokens = windows;
  model_options.max_step_logits = windows;
  const int64_t window_blocks =
      (window_tokens + model_options.block_size - 1) / model_options.block_size;
  model_options.kv_cache_tokens = windows * window_blocks * model_options.block_size;
  US_ASSIGN_OR_RETURN(const auto model, LoadModel(checkpoint, backend, model_options));
  return SampleCalibration(*model, checkpoint->eos_token_ids(), options.seed,
                           options.calibration_windows, window_tokens, options.cancelled);
}

absl::StatusOr<CalibrationText> MakeCalibration(const std::shared_ptr<const Checkpoint>& checkpoint,
                                                const CompressOptions& options,
                                                const FitDevice& device) {
  const int64_t window_tokens = CalibrationWindowTokens(checkpoint->config(), options);
  if (options.calibration_files.empty()) {
    return SampleFromModel(checkpoint, window_tokens, options, device);
  }
  US_ASSIGN_OR_RETURN(const FolderTokenizer loaded, LoadFolderTokenizer(checkpoint->folder()));
  US_ASSIGN_OR_RETURN(
      CalibrationText text,
      ReadCalibration(options.calibration_files, *loaded.tokenizer, options.calibration_windows,
                      window_tokens, options.add_special_tokens));
  for (const auto& window : text.windows) {
    const absl::Status status =
        CheckIdsOfText(*loaded.tokenizer, window, checkpoint->config().vocab_size);
    if (!status.ok()) return Annotate(status, "calibration");
  }
  return text;
}

absl::StatusOr<std::vector<double>> MeasureImportance(const Checkpoint& checkpoint,
                                                      absl::Span<const LinearSite> sites,
                                                      const CalibrationText& text,
                                                      const CompressOptions& options,
                                                      FitDevice& device, ThreadPool& pool) {
  SensitivityOptions sensitivity_options;
  sensitivity_options.seed = options.seed;
  sensitivity_options.progress = [&](double fraction) {
    return Continue(options, "sensitivities", kSensitivityShare * fraction);
  };
  US_ASSIGN_OR_RETURN(
      const std::vector<double> sensitivities,
      MeasureSensitivities(checkpoint, sites, text, sensitivity_options, device, pool));
  return ImportanceFromSensitivities(sites, sensitivities);
}

json QuantizationConfig(const SiteEncoder& encoder, const CompressOptions& options) {
  json config = {{"quant_method", kQuantMethod},
                 {"version", kQuantVersion},
                 {"codec", options.codec},
                 {"bits", options.bits_per_weight}};
  config.update(encoder.Parameters());
  return config;
}

absl::Status Prepare(const std::shared_ptr<const Checkpoint>& checkpoint,
                     absl::Span<const LinearSite> sites, const CompressOptions& options,
                     FitJournal& journal, FitDevice& device, ThreadPool& pool) {
  if (journal.has_preparation()) return absl::OkStatus();
  Report(options, "calibration text", 0.0);
  US_ASSIGN_OR_RETURN(CalibrationText text, MakeCalibration(checkpoint, options, device));
  US_ASSIGN_OR_RETURN(std::vector<double> importance,
                      MeasureImportance(*checkpoint, sites, text, options, device, pool));
  return journal.SetPreparation(std::move(text), std::move(importance));
}

absl::StatusOr<EncodedSites> EncodeFromCalibration(
    const Checkpoint& checkpoint, absl::Span<const LinearSite> sites, const SiteEncoder& encoder,
    const EncodedLinear* embedding, const CompressOptions& options, FitJournal& journal,
    FitDevice& device, ThreadPool& pool) {
  const json quantization_config = QuantizationConfig(encoder, options);
  LayerFitOptions fit_options;
  fit_options.embedding = embedding;
  fit_options.on_site = [&](size_t index) { return StartSite(sites, index, options); };
  fit_options.num_finished_layers = journal.num_layers();
  fit_options.finished_layer = [&](int layer) {
    return journal.ReadLayer(
        layer, sites.subspan(static_cast<size_t>(layer) * kNumSiteKinds, kNumSiteKinds),
        quantization_config);
  };
  fit_options.on_layer = [&](int, const FittedLayer& layer) { return journal.AppendLayer(layer); };
  US_ASSIGN_OR_RETURN(LayerFit fit, FitLayers(checkpoint, sites, encoder, journal.text(),
                                              fit_options, device, pool));
  EncodedSites result;
  result.replaced.push_back(std::move(fit.last_norm));
  for (FittedLayer& layer : fit.layers) {
    result.sources.push_back(std::move(layer.source));
    std::move(layer.norms.begin(), layer.norms.end(), std::back_inserter(result.replaced));
    for (FittedSite& site : layer.sites) {
      result.reports.push_back(SiteReport(*site.encoded));
      result.reports.back().relative_weight_error = site.relative_weight_error;
      result.reports.back().relative_output_error = site.relative_output_error;
      result.reports.back().relative_residual_error = site.relative_residual_error;
      result.sites.push_back(std::move(site.encoded));
    }
  }
  return result;
}

// Says how to go on from what a journal has.
absl::Status WithHint(const absl::Status& status, const FitJournal& journal, int num_layers) {
  if (status.ok() || journal.num_layers() == 0) return status;
  return absl::Status(status.code(),
                      absl::StrCat(status.message(), "; ", journal.num_layers(), " of ", num_layers,
                                   " layers are finished and kept in ", journal.folder(),
                                   ": go on from there with --resume"));
}

}  // namespace

absl::StatusOr<CompressionReport> CompressCheckpoint(std::shared_ptr<const Checkpoint> checkpoint,
                                                     const std::string& out_folder,
                                                     const CompressOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  US_RETURN_IF_ERROR(ValidateOptions(*checkpoint, options));
  US_ASSIGN_OR_RETURN(
      const std::string out,
      ResolveOutputFolder(*checkpoint, options.calibration_files, out_folder, options.overwrite));
  US_ASSIGN_OR_RETURN(const TableTypes table_types,
                      ChooseTableTypes(checkpoint->config(), options.embedding, options.head,
                                       options.bits_per_weight));
  const std::vector<LinearSite> sites = LinearSites(checkpoint->config());
  US_RETURN_IF_ERROR(CheckTensors(*checkpoint, sites));
  // Whether the target can be met does not depend on the importance, which is yet to be measured.
  const auto make_encoder = FindEncodableCodec(options.codec)->make_encoder;
  US_ASSIGN_OR_RETURN(std::unique_ptr<SiteEncoder> encoder,
                      make_encoder(sites, TypicalImportance(sites), options));
  ThreadPool pool(options.num_threads);
  US_ASSIGN_OR_RETURN(const std::unique_ptr<FitDevice> device,
                      CreateFitDevice(options.device, pool));
  CompressionStart start_state;
  start_state.memory =
      EstimateCompressionMemory(checkpoint->config(), checkpoint->file_bytes(), options, *device);
  start_state.device = std::string(device->name());
  start_state.device_description = device->description();
  start_state.device_available_bytes = device->available_bytes();
  CompressionReport report;
  report.device = start_state.device;
  report.estimated_memory_bytes = start_state.memory.host_bytes;
  report.estimated_device_memory_bytes = start_state.memory.device_bytes;
  if (options.on_start) options.on_start(start_state);

  US_ASSIGN_OR_RETURN(const json description,
                      DescribeFit(*checkpoint, options, device->name(), pool));
  US_ASSIGN_OR_RETURN(const std::unique_ptr<FitJournal> journal,
                      FitJournal::Open(out + ".partial", description, options.resume));
  report.resumed_layers = journal->num_layers();
  Report(options, "embedding and head", 0.0);
  US_ASSIGN_OR_RETURN(CompressedTables tables, CompressTables(*checkpoint, table_types, pool));

  const auto work = [&]() -> absl::Status {
    EncodedSites encoded;
    if (options.calibration_windows == 0) {
      report.calibration_source = "none";
      US_ASSIGN_OR_RETURN(encoded,
                          EncodeFromWeights(*checkpoint, sites, *encoder, options, *device, pool));
    } else {
      report.calibration_source = options.calibration_files.empty() ? "self-generated" : "files";
      US_RETURN_IF_ERROR(Prepare(checkpoint, sites, options, *journal, *device, pool));
      report.calibration_tokens = journal->text().num_tokens();
      std::string warning = CalibrationWarning(journal->text(), options.calibration_windows,
                                               options.calibration_window_tokens);
      if (!warning.empty()) {
        if (options.on_warning) options.on_warning(warning);
        report.warnings.push_back(std::move(warning));
      }
      US_ASSIGN_OR_RETURN(encoder, make_encoder(sites, journal->importance(), options));
      US_ASSIGN_OR_RETURN(
          encoded, EncodeFromCalibration(*checkpoint, sites, *encoder, tables.embedding.get(),
                                         options, *journal, *device, pool));
    }
    report.peak_device_memory_bytes = device->peak_bytes();
    if (Cancelled(options)) return absl::CancelledError("compression was cancelled");

    Report(options, "writing", 1.0);
    for (std::unique_ptr<GroupedTable>* table : {&tables.embedding, &tables.head}) {
      if (*table != nullptr) encoded.sites.push_back(std::move(*table));
    }
    json quantization_config = QuantizationConfig(*encoder, options);
    quantization_config.update(TableParameters(table_types));
    US_RETURN_IF_ERROR(WriteModelFolder(*checkpoint, encoded.sites, encoded.replaced,
                                        quantization_config, journal->model_folder()));
    // In the meantime somebody else may have put something there.
    US_RETURN_IF_ERROR(
        ResolveOutputFolder(*checkpoint, options.calibration_files, out, options.overwrite)
            .status());
    report.sites = std::move(encoded.reports);
    if (report.calibration_tokens < checkpoint->config().hidden_size) {
      for (CompressedSite& site : report.sites) {
        site.relative_output_error = std::numeric_limits<double>::quiet_NaN();
        site.relative_residual_error = std::numeric_limits<double>::quiet_NaN();
      }
    }
    return PublishFolder(journal->model_folder(), out);
  };
  if (const absl::Status status = work(); !status.ok()) {
    return WithHint(status, *journal, checkpoint->config().num_layers);
  }
  US_RETURN_IF_ERROR(journal->Remove());
  // What was written is measured as anybody else would read it.
  US_ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> written, Checkpoint::Open(out));
  US_ASSIGN_OR_RETURN(const ModelSize size, MeasureModel(*written));
  report.bits_per_weight_linear = size.bits_per_weight_linear;
  report.bits_per_weight_file = size.bits_per_weight_file;
  report.bytes = size.file_bytes;
  report.parameters = size.parameters;
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
                     {"bytes", site.bytes},
                     {"bits_per_weight", site.bits_per_weight},
                     {"relative_weight_error", number(site.relative_weight_error)},
                     {"relative_output_error", number(site.relative_output_error)},
                     {"relative_residual_error", number(site.relative_residual_error)}});
  }
  return {{"bits_per_weight_linear", report.bits_per_weight_linear},
          {"bits_per_weight_file", report.bits_per_weight_file},
          {"bytes", report.bytes},
          {"seconds", report.seconds},
          {"parameters", report.parameters},
          {"calibration_tokens", report.calibration_tokens},
          {"calibration_source", report.calibration_source},
          {"resumed_layers", report.resumed_layers},
          {"device", report.device},
          {"estimated_memory_bytes", report.estimated_memory_bytes},
          {"estimated_device_memory_bytes", report.estimated_device_memory_bytes},
          {"peak_device_memory_bytes", report.peak_device_memory_bytes},
          {"warnings", report.warnings},
          {"sites", std::move(sites)}};
}

}  // namespace ultrasketch
