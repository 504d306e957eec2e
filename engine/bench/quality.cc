#include "engine/bench/quality.h"

#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/bench/round_to_nearest.h"
#include "engine/codecs/codec.h"
#include "engine/compress/accounting.h"
#include "engine/format/tokenizer/tokenizer.h"

namespace ultrasketch {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

// Of the time of a compressed point, to which an evaluation is added.
constexpr double kCompressShare = 0.7;

// The bits of a landmark "int4"; 0 when it is none.
int LandmarkBits(std::string_view name) {
  if (name.size() != 4 || !name.starts_with("int")) return 0;
  const int bits = name[3] - '0';
  return bits >= 2 && bits <= 8 ? bits : 0;
}

// A new folder, removed with all that is in it.
class WorkFolder {
 public:
  static absl::StatusOr<std::unique_ptr<WorkFolder>> Create(const std::string& parent) {
    std::error_code error;
    const fs::path within = parent.empty() ? fs::temp_directory_path(error) : fs::path(parent);
    std::string pattern = (within / "ultrasketch-quality-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) return ErrnoStatus(errno, pattern);
    return std::unique_ptr<WorkFolder>(new WorkFolder(pattern));
  }
  ~WorkFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;

  // Where the next model goes; the one before is removed.
  absl::StatusOr<std::string> Next() {
    std::error_code error;
    const fs::path model = path_ / "model";
    fs::remove_all(model, error);
    if (!error) fs::create_directory(model, error);
    if (error) return ErrnoStatus(error.value(), model.string());
    return model.string();
  }

 private:
  explicit WorkFolder(fs::path path) : path_(std::move(path)) {}
  fs::path path_;
};

absl::StatusOr<std::vector<int32_t>> ReadText(const Checkpoint& dense,
                                              const QualityOptions& options) {
  US_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Load(dense.tokenizer_path()));
  US_ASSIGN_OR_RETURN(const std::string text, ReadFile(options.text_file));
  US_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, EncodeForEvaluation(*tokenizer, text));
  const absl::Status status = CheckEvaluation(dense.config(), tokens, options.evaluate);
  if (!status.ok()) return Annotate(status, options.text_file);
  return tokens;
}

class QualityMeasurement {
 public:
  QualityMeasurement(std::shared_ptr<const Checkpoint> dense, const QualityOptions& options,
                     std::vector<int32_t> tokens, std::unique_ptr<WorkFolder> work)
      : dense_(std::move(dense)),
        options_(options),
        tokens_(std::move(tokens)),
        work_(std::move(work)),
        num_points_(1 + options.landmarks.size() + options.codecs.size() * options.bits.size()) {}

  absl::StatusOr<QualityStudy> Run() {
    std::error_code error;
    const fs::path folder = fs::canonical(dense_->folder(), error);
    study_.model_name = error ? dense_->folder() : folder.filename().string();
    study_.text_name = fs::path(options_.text_file).filename().string();
    study_.context = options_.evaluate.context;
    US_ASSIGN_OR_RETURN(dense_size_, MeasureModel(*dense_));
    study_.parameters = dense_size_.parameters;

    US_RETURN_IF_ERROR(MeasureDense());
    for (const std::string& landmark : options_.landmarks) {
      US_RETURN_IF_ERROR(MeasureLandmark(landmark));
    }
    for (const std::string& codec : options_.codecs) {
      for (const double bits : options_.bits) US_RETURN_IF_ERROR(MeasureCodec(codec, bits));
    }
    return std::move(study_);
  }

 private:
  absl::Status MeasureDense() {
    label_ = "dense";
    QualityPoint point;
    point.name = "dense";
    point.bits_per_weight_linear = dense_size_.bits_per_weight_linear;
    point.bits_per_weight_file = dense_size_.bits_per_weight_file;
    point.bytes = dense_size_.file_bytes;
    return Evaluate(dense_, 0, std::move(point));
  }

  absl::Status MeasureLandmark(const std::string& name) {
    label_ = name;
    const int bits = LandmarkBits(name);
    QualityPoint point;
    point.kind = QualityPoint::Kind::kLandmark;
    point.name = name;
    const int64_t linear_bytes = RoundToNearestBytes(bits, dense_->config());
    point.bytes = dense_size_.file_bytes - dense_size_.linear_bytes + linear_bytes;
    point.bits_per_weight_linear =
        8.0 * static_cast<double>(linear_bytes) / static_cast<double>(dense_size_.linear_weights);
    point.bits_per_weight_file =
        8.0 * static_cast<double>(point.bytes) / static_cast<double>(dense_size_.parameters);
    Report("rounding", 0);
    US_ASSIGN_OR_RETURN(const std::string folder, work_->Next());
    US_RETURN_IF_ERROR(WriteRoundedCheckpoint(*dense_, bits, folder));
    US_ASSIGN_OR_RETURN(auto rounded, Checkpoint::Open(folder));
    return Evaluate(std::move(rounded), 0, std::move(point));
  }

  absl::Status MeasureCodec(const std::string& codec, double bits) {
    label_ = absl::StrFormat("%s at %g bits", codec, bits);
    QualityPoint point;
    point.kind = QualityPoint::Kind::kCodec;
    point.name = codec;
    point.target_bits = bits;
    US_ASSIGN_OR_RETURN(const std::string folder, work_->Next());
    CompressOptions compress = options_.compress;
    compress.codec = codec;
    compress.bits_per_weight = bits;
    compress.cancelled = options_.cancelled;
    compress.progress = [this](const CompressProgress& progress) {
      Report(progress.stage, kCompressShare * progress.fraction);
    };
    const absl::StatusOr<CompressionReport> report = CompressCheckpoint(dense_, folder, compress);
    if (absl::IsInvalidArgument(report.status())) {
      point.error = std::string(report.status().message());
      study_.points.push_back(std::move(point));
      return absl::OkStatus();
    }
    if (!report.ok()) return Annotate(report.status(), label_);
    study_.calibration_source = report->calibration_source;
    study_.calibration_tokens = report->calibration_tokens;
    point.bits_per_weight_linear = report->bits_per_weight_linear;
    point.bits_per_weight_file = report->bits_per_weight_file;
    point.bytes = report->bytes;
    point.compress_seconds = report->seconds;
    US_ASSIGN_OR_RETURN(auto compressed, Checkpoint::Open(folder));
    return Evaluate(std::move(compressed), kCompressShare, std::move(point));
  }

  // Completes the point; `done` is the share of its work that was before the evaluation.
  absl::Status Evaluate(std::shared_ptr<const Checkpoint> checkpoint, double done,
                        QualityPoint point) {
    if (options_.cancelled != nullptr && *options_.cancelled) {
      return absl::CancelledError("the study was cancelled");
    }
    EvaluateOptions evaluate = options_.evaluate;
    evaluate.cancelled = options_.cancelled;
    evaluate.progress = [&](const EvaluateProgress& progress) {
      Report("evaluating", done + (1 - done) * static_cast<double>(progress.tokens_done) /
                                      static_cast<double>(progress.tokens_total));
    };
    auto evaluation = EvaluateCheckpoint(std::move(checkpoint), options_.device, tokens_, evaluate);
    if (!evaluation.ok()) return Annotate(evaluation.status(), label_);
    point.evaluation = *evaluation;
    const double dense_nll =
        study_.points.empty() ? point.evaluation.nll : study_.points.front().evaluation.nll;
    point.perplexity_ratio = std::exp(point.evaluation.nll - dense_nll);
    study_.points.push_back(std::move(point));
    return absl::OkStatus();
  }

  void Report(std::string_view stage, double share) {
    if (!options_.progress) return;
    const double done = static_cast<double>(study_.points.size()) + share;
    options_.progress(
        {absl::StrCat(label_, ": ", A(stage)), done / static_cast<double>(num_points_)});
  }

  const std::shared_ptr<const Checkpoint> dense_;
  const QualityOptions& options_;
  const std::vector<int32_t> tokens_;
  const std::unique_ptr<WorkFolder> work_;
  const size_t num_points_;
  ModelSize dense_size_;
  std::string label_;  // of the point at work
  QualityStudy study_;
};

const char* KindName(QualityPoint::Kind kind) {
  switch (kind) {
    case QualityPoint::Kind::kDense:
      return "dense";
    case QualityPoint::Kind::kCodec:
      return "codec";
    case QualityPoint::Kind::kLandmark:
      return "landmark";
  }
  return "";
}

ordered_json ToJson(const QualityPoint& point) {
  const auto number = [&](double value) {
    return point.error.empty() && std::isfinite(value) ? ordered_json(value) : ordered_json();
  };
  const bool is_codec = point.kind == QualityPoint::Kind::kCodec;
  return {{"kind", KindName(point.kind)},
          {"name", point.name},
          {"target_bits", is_codec ? ordered_json(point.target_bits) : ordered_json()},
          {"error", point.error.empty() ? ordered_json() : ordered_json(point.error)},
          {"bits_per_weight_linear", number(point.bits_per_weight_linear)},
          {"bits_per_weight_file", number(point.bits_per_weight_file)},
          {"bytes", point.error.empty() ? ordered_json(point.bytes) : ordered_json()},
          {"compress_seconds", is_codec ? number(point.compress_seconds) : ordered_json()},
          {"perplexity", number(point.evaluation.perplexity)},
          {"nll", number(point.evaluation.nll)},
          {"perplexity_ratio", number(point.perplexity_ratio)},
          {"tokens", point.error.empty() ? ordered_json(point.evaluation.tokens) : ordered_json()},
          {"tokens_per_second", number(point.evaluation.tokens_per_second)}};
}

}  // namespace

absl::Status CheckQualityOptions(const Checkpoint& dense, const QualityOptions& options) {
  US_ASSIGN_OR_RETURN(const std::string stored, CheckpointCodec(dense));
  if (stored != "dense") {
    return absl::InvalidArgumentError(absl::StrCat(
        dense.folder(), ": expected an uncompressed model, found one in codec ", stored));
  }
  for (const std::string& codec : options.codecs) {
    if (FindCodec(codec) != nullptr && codec != "dense") continue;
    std::vector<std::string> names;
    for (const std::string_view name : CodecNames()) {
      if (name != "dense") names.emplace_back(name);
    }
    return absl::InvalidArgumentError(absl::StrCat(
        "codec: expected one of ", absl::StrJoin(names, ", "), "; found ", Quoted(codec)));
  }
  if (!options.codecs.empty() && options.bits.empty()) {
    return absl::InvalidArgumentError("bits: expected at least one rate for the codecs");
  }
  for (const double bits : options.bits) {
    if (std::isfinite(bits) && bits > 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("bits: expected positive numbers, found ", bits));
  }
  for (const std::string& landmark : options.landmarks) {
    if (LandmarkBits(landmark) != 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("landmark: expected int2 to int8, found ", Quoted(landmark)));
  }
  return ReadText(dense, options).status();
}

absl::StatusOr<QualityStudy> MeasureQuality(std::shared_ptr<const Checkpoint> dense,
                                            const QualityOptions& options) {
  US_RETURN_IF_ERROR(CheckQualityOptions(*dense, options));
  US_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, ReadText(*dense, options));
  US_ASSIGN_OR_RETURN(std::unique_ptr<WorkFolder> work, WorkFolder::Create(options.work_folder));
  return QualityMeasurement(std::move(dense), options, std::move(tokens), std::move(work)).Run();
}

ordered_json ToJson(const QualityStudy& study) {
  ordered_json points = ordered_json::array();
  for (const QualityPoint& point : study.points) points.push_back(ToJson(point));
  return {
      {"model", study.model_name},
      {"parameters", study.parameters},
      {"text", study.text_name},
      {"context", study.context},
      {"calibration_source",
       study.calibration_source.empty() ? ordered_json() : ordered_json(study.calibration_source)},
      {"calibration_tokens", study.calibration_tokens},
      {"points", std::move(points)}};
}

}  // namespace ultrasketch
