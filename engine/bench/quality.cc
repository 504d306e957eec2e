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

#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/bench/round_to_nearest.h"
#include "engine/codecs/codec.h"
#include "engine/compress/accounting.h"
#include "engine/models/checkpoint_codec.h"

namespace ultrasketch {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

// Of the time of a compressed point, to which an evaluation is added.
constexpr double kCompressShare = 0.7;

// A new folder, removed with all that is in it.
class WorkFolder {
 public:
  static absl::StatusOr<std::unique_ptr<WorkFolder>> Create(const std::string& parent) {
    std::string pattern = (fs::path(parent) / "ultrasketch-quality-XXXXXX").string();
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

class QualityMeasurement {
 public:
  QualityMeasurement(std::shared_ptr<const Checkpoint> dense, absl::Span<const int32_t> token_ids,
                     const QualityOptions& options, std::unique_ptr<WorkFolder> work)
      : dense_(std::move(dense)),
        token_ids_(token_ids),
        options_(options),
        work_(std::move(work)),
        num_points_(1 + options.landmarks.size() + options.codecs.size() * options.bits.size()) {}

  absl::StatusOr<std::vector<QualityPoint>> Run() {
    US_ASSIGN_OR_RETURN(dense_size_, MeasureModel(*dense_));
    US_RETURN_IF_ERROR(MeasureDense());
    for (const int bits : options_.landmarks) US_RETURN_IF_ERROR(MeasureLandmark(bits));
    for (const std::string& codec : options_.codecs) {
      for (const double bits : options_.bits) US_RETURN_IF_ERROR(MeasureCodec(codec, bits));
    }
    return std::move(points_);
  }

 private:
  absl::Status MeasureDense() {
    label_ = "dense";
    QualityPoint point;
    point.codec = "dense";
    point.bits_per_weight_linear = dense_size_.bits_per_weight_linear;
    point.bits_per_weight_file = dense_size_.bits_per_weight_file;
    point.bytes = dense_size_.file_bytes;
    return Evaluate(dense_, 0, std::move(point));
  }

  absl::Status MeasureLandmark(int bits) {
    label_ = absl::StrCat("int", bits);
    QualityPoint point;
    point.codec = label_;
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
    point.codec = codec;
    point.target_bits = bits;
    US_ASSIGN_OR_RETURN(const std::string folder, work_->Next());
    CompressOptions compress = options_.compress;
    compress.codec = codec;
    compress.bits_per_weight = bits;
    compress.progress = [this](const CompressProgress& progress) {
      Report(progress.stage, kCompressShare * progress.fraction);
    };
    const absl::StatusOr<CompressionReport> report = CompressCheckpoint(dense_, folder, compress);
    if (absl::IsOutOfRange(report.status())) {
      point.error = std::string(report.status().message());
      return Add(std::move(point));
    }
    if (!report.ok()) return Annotate(report.status(), label_);
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
    EvaluateOptions evaluate = options_.evaluate;
    evaluate.progress = [&](const EvaluateProgress& progress) {
      Report("evaluating", done + (1 - done) * static_cast<double>(progress.tokens_done) /
                                      static_cast<double>(progress.tokens_total));
    };
    auto evaluation =
        EvaluateCheckpoint(std::move(checkpoint), options_.device, token_ids_, evaluate);
    if (!evaluation.ok()) return Annotate(evaluation.status(), label_);
    point.perplexity = evaluation->perplexity;
    point.nll = evaluation->nll;
    point.tokens = evaluation->tokens;
    point.ratio_to_dense = points_.empty() ? 1 : std::exp(point.nll - points_.front().nll);
    return Add(std::move(point));
  }

  absl::Status Add(QualityPoint point) {
    points_.push_back(std::move(point));
    return options_.on_point ? options_.on_point(points_) : absl::OkStatus();
  }

  void Report(std::string_view stage, double share) {
    if (!options_.progress) return;
    const double done = static_cast<double>(points_.size()) + share;
    options_.progress(absl::StrCat(label_, ": ", A(stage)),
                      std::min(1.0, done / static_cast<double>(num_points_)));
  }

  const std::shared_ptr<const Checkpoint> dense_;
  const absl::Span<const int32_t> token_ids_;
  const QualityOptions& options_;
  const std::unique_ptr<WorkFolder> work_;
  const size_t num_points_;
  ModelSize dense_size_;
  std::string label_;  // of the point at work
  std::vector<QualityPoint> points_;
};

absl::Status CheckOptions(const Checkpoint& dense, const QualityOptions& options) {
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
  for (const int bits : options.landmarks) {
    if (bits >= 1 && bits <= 8) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("landmarks: expected 1 to 8 bits, found ", bits));
  }
  return absl::OkStatus();
}

ordered_json PointJson(const QualityPoint& point) {
  const bool is_measured = point.error.empty();
  const auto number = [&](double value) {
    return is_measured && std::isfinite(value) ? ordered_json(value) : ordered_json();
  };
  return {
      {"codec", point.codec},
      {"target_bits", point.target_bits > 0 ? ordered_json(point.target_bits) : ordered_json()},
      {"bits_per_weight_linear", number(point.bits_per_weight_linear)},
      {"bits_per_weight_file", number(point.bits_per_weight_file)},
      {"bytes", is_measured ? ordered_json(point.bytes) : ordered_json()},
      {"compress_seconds", point.target_bits > 0 ? number(point.compress_seconds) : ordered_json()},
      {"perplexity", number(point.perplexity)},
      {"nll", number(point.nll)},
      {"tokens", is_measured ? ordered_json(point.tokens) : ordered_json()},
      {"ratio_to_dense", number(point.ratio_to_dense)},
      {"error", is_measured ? ordered_json() : ordered_json(point.error)}};
}

}  // namespace

absl::StatusOr<std::vector<QualityPoint>> MeasureQuality(std::shared_ptr<const Checkpoint> dense,
                                                         absl::Span<const int32_t> token_ids,
                                                         const QualityOptions& options) {
  US_RETURN_IF_ERROR(CheckOptions(*dense, options));
  US_RETURN_IF_ERROR(CheckEvaluation(dense->config(), token_ids, options.evaluate));
  US_ASSIGN_OR_RETURN(std::unique_ptr<WorkFolder> work, WorkFolder::Create(options.work_folder));
  return QualityMeasurement(std::move(dense), token_ids, options, std::move(work)).Run();
}

ordered_json ToJson(absl::Span<const QualityPoint> points) {
  ordered_json array = ordered_json::array();
  for (const QualityPoint& point : points) array.push_back(PointJson(point));
  return array;
}

}  // namespace ultrasketch
