#include "engine/compress/compression_memory.h"

#include <algorithm>

#include "engine/compress/layer_fit.h"
#include "engine/compress/logit_scale.h"
#include "engine/compress/sensitivity.h"
#include "engine/compress/table_compression.h"
#include "engine/models/layer_table.h"

namespace ultrasketch {
namespace {

constexpr int64_t kDouble = sizeof(double);
constexpr int64_t kFloat = sizeof(float);

// The program itself, its threads and their scratch.
constexpr int64_t kProgramBytes = int64_t{64} << 20;

// Of the cache of a model that writes its own text.
constexpr int64_t kSampleCacheBytes = int64_t{256} << 20;
constexpr int64_t kMostSampledWindows = 128;

int64_t CacheBytesOfWindow(const ModelConfig& config, const CompressOptions& options) {
  return CalibrationWindowTokens(config, options) * config.num_layers * 2 * config.key_width() *
         kFloat;
}

}  // namespace

int64_t CalibrationWindowTokens(const ModelConfig& config, const CompressOptions& options) {
  return std::min(options.calibration_window_tokens, config.max_position_embeddings);
}

int64_t SampledWindowsAtOnce(const ModelConfig& config, const CompressOptions& options) {
  const int64_t fitting = kSampleCacheBytes / CacheBytesOfWindow(config, options);
  return std::clamp<int64_t>(fitting, 1,
                             std::min(options.calibration_windows, kMostSampledWindows));
}

int64_t EstimateCompressionMemory(const ModelConfig& config, const CompressOptions& options) {
  int64_t widest_rows = 0;
  int64_t widest_cols = 0;
  int64_t encoding = 0;
  const absl::StatusOr<TableTypes> table_types =
      ChooseTableTypes(config, options.embedding, options.head, options.bits_per_weight);
  int64_t compressed = table_types.ok() ? TableBytes(config, *table_types) : 0;
  int64_t layer_weights = 0;  // of a layer's sites, as they are and transposed
  for (const LinearSite& site : LinearSites(config)) {
    widest_rows = std::max(widest_rows, site.rows);
    widest_cols = std::max(widest_cols, site.cols);
    // Moments of inputs and outputs, the same folded, and a factor and an inverse.
    encoding = std::max(encoding, (5 * site.cols + 2 * site.rows) * site.cols * kDouble);
    compressed +=
        static_cast<int64_t>(static_cast<double>(site.num_weights()) * options.bits_per_weight / 8);
    if (site.layer == 0) layer_weights += 2 * site.num_weights() * kFloat;
  }
  const int64_t always = kProgramBytes + compressed;
  if (options.calibration_windows == 0) return always + encoding + layer_weights;

  const int64_t window_tokens = CalibrationWindowTokens(config, options);
  const int64_t num_tokens = options.calibration_windows * window_tokens;
  const int64_t streams = num_tokens * (2 * config.hidden_size + config.query_width()) * kFloat;
  const int64_t batch = LayerFitBatchTokens(window_tokens) *
                        (6 * config.hidden_size + 2 * widest_rows + 4 * widest_cols) * kFloat;
  const int64_t sampling =
      options.calibration_files.empty()
          ? SampledWindowsAtOnce(config, options) *
                (CacheBytesOfWindow(config, options) + config.vocab_size * kFloat)
          : 0;
  return always +
         std::max({streams + batch + layer_weights + encoding, streams + LogitScaleMemory(config),
                   SensitivityMemory(config) + 2 * layer_weights, sampling});
}

}  // namespace ultrasketch
