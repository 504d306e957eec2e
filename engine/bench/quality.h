// Rate and quality: the perplexity of one model at many sizes, on one text.
#ifndef ULTRASKETCH_ENGINE_BENCH_QUALITY_H_
#define ULTRASKETCH_ENGINE_BENCH_QUALITY_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "nlohmann/json.hpp"

#include "engine/bench/round_to_nearest.h"
#include "engine/compress/compressor.h"
#include "engine/compress/evaluate.h"
#include "engine/format/checkpoint.h"

namespace ultrasketch {

struct QualityPoint {
  std::string codec;       // "dense", a codec's name, or "int4" for a landmark
  double target_bits = 0;  // what a codec was asked for; 0 for others

  // Why there is no such point: what the compressor says of a target that the codec cannot meet.
  // The rest is then not set.
  std::string error;

  double bits_per_weight_linear = 0;
  double bits_per_weight_file = 0;
  int64_t bytes = 0;            // of the model's files; of a landmark, what they would be
  double compress_seconds = 0;  // 0 for the dense model and landmarks
  double perplexity = 0;
  double nll = 0;
  int64_t tokens = 0;
  double ratio_to_dense = 0;  // of the perplexities
};

struct QualityOptions {
  std::vector<std::string> codecs = {"fold"};
  std::vector<double> bits = {0.25, 0.5, 1, 2};  // targets of every codec
  std::vector<int> landmarks = {2, 4};           // bits of round_to_nearest.h, without the scale

  // Of every compression; codec, bits_per_weight and progress are set for each.
  CompressOptions compress;

  // Of every evaluation; progress is set for each. A stop is asked for through both `cancelled`.
  EvaluateOptions evaluate;
  std::string device = "auto";

  // Models are written to a folder of their own in it, one at a time, which is removed at the end,
  // whatever the end. Rounded models take four bytes a weight.
  std::string work_folder;

  // Called with all points so far after each of them; what it returns other than OK ends the
  // measurement. May be empty.
  std::function<absl::Status(absl::Span<const QualityPoint>)> on_point;

  // What is done, and the fraction of the whole, estimated, in [0, 1], never falling. May be empty.
  std::function<void(std::string_view stage, double fraction)> progress;
};

// Measures the dense model, then every landmark, then every codec at every rate, on the same
// tokens.
//
// INVALID_ARGUMENT for codecs and landmarks that there are not, no rates for a codec, a model that
// is compressed already, and what CheckEvaluation refuses; CANCELLED; what compressing, writing and
// evaluating return.
absl::StatusOr<std::vector<QualityPoint>> MeasureQuality(std::shared_ptr<const Checkpoint> dense,
                                                         absl::Span<const int32_t> token_ids,
                                                         const QualityOptions& options);

// An array of objects with the fields' names as keys; what a point does not have is null.
nlohmann::ordered_json ToJson(absl::Span<const QualityPoint> points);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_QUALITY_H_
