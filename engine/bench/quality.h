// Rate and quality: the perplexity of one model at many sizes, on one text.
#ifndef ULTRASKETCH_ENGINE_BENCH_QUALITY_H_
#define ULTRASKETCH_ENGINE_BENCH_QUALITY_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

#include "engine/compress/compressor.h"
#include "engine/compress/evaluate.h"
#include "engine/format/checkpoint.h"

namespace ultrasketch {

struct QualityProgress {
  std::string stage;    // "fold at 0.5 bits: layer 3 of 10"
  double fraction = 0;  // of the whole study, estimated, in [0, 1]
};

struct QualityOptions {
  std::string text_file;  // UTF-8

  std::vector<std::string> codecs = {"fold"};
  std::vector<double> bits = {0.25, 0.5, 1, 2};           // targets of every codec
  std::vector<std::string> landmarks = {"int2", "int4"};  // "intN", N of 2 to 8: round_to_nearest.h

  // Of every compression; codec, bits_per_weight, progress and cancelled are set for each.
  CompressOptions compress;

  // Of every evaluation; progress and cancelled are set for each.
  EvaluateOptions evaluate;
  std::string device = "auto";

  // Models are written to a folder of their own in it, one at a time, which is removed at the end,
  // whatever the end. "": the system's folder for temporary files. Rounded models take four bytes a
  // weight.
  std::string work_folder;

  std::function<void(const QualityProgress&)> progress;  // may be empty
  const std::atomic<bool>* cancelled = nullptr;          // may be null
};

struct QualityPoint {
  enum class Kind { kDense, kCodec, kLandmark };
  Kind kind = Kind::kDense;
  std::string name;        // "dense", a codec's or a landmark's
  double target_bits = 0;  // what a codec was asked for

  // Why there is no such point: the codec cannot meet the target. The rest is then not set.
  std::string error;

  double bits_per_weight_linear = 0;
  double bits_per_weight_file = 0;
  int64_t bytes = 0;            // of the model's files; of a landmark, what they would be
  double compress_seconds = 0;  // 0 for the dense model and landmarks
  Evaluation evaluation;
  double perplexity_ratio = 0;  // to the dense model's
};

struct QualityStudy {
  std::string model_name;
  int64_t parameters = 0;
  std::string text_name;
  int64_t context = 0;
  std::string calibration_source;  // CompressionReport's
  int64_t calibration_tokens = 0;
  std::vector<QualityPoint> points;  // the dense model's first
};

// What MeasureQuality would refuse the options for: INVALID_ARGUMENT for codecs and landmarks that
// there are not, a model that is compressed already, no rates for a codec, a text that is too
// short; what reading the text returns.
absl::Status CheckQualityOptions(const Checkpoint& dense, const QualityOptions& options);

// Measures the dense model, then every landmark, then every codec at every rate. Besides what
// CheckQualityOptions returns: CANCELLED; what compressing, writing and evaluating return.
absl::StatusOr<QualityStudy> MeasureQuality(std::shared_ptr<const Checkpoint> dense,
                                            const QualityOptions& options);

// Keys as the fields are called; "points" is an array of objects. What a point does not have is
// null.
nlohmann::ordered_json ToJson(const QualityStudy& study);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_QUALITY_H_
