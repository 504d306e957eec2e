#include "engine/compress/compression_memory.h"

#include <algorithm>

#include "engine/compress/cpu_fit_device.h"
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
constexpr int64_t kGpuSampleCacheBytes = int64_t{4} << 30;
constexpr int64_t kMostSampledWindows = 128;

int64_t CacheBytesOfWindow(const ModelConfig& config, const CompressOptions& options) {
  return CalibrationWindowTokens(config, options) * config.num_layers * 2 * config.key_width() *
         kFloat;
}

}  // namespace

int64_t CalibrationWindowTokens(const ModelConfig& config, const CompressOptions& options) {
  return std::min(options.calibration_window_tokens, config.max_position_embeddings);
}

int64_t SampledWindowsAtOnce(const ModelConfig& config, const CompressOptions& options,
                             bool on_gpu) {
  const int64_t fitting =
      (on_gpu ? kGpuSampleCacheBytes : kSampleCacheBytes) / CacheBytesOfWindow(config, options);
  return std::clamp<int64_t>(fitting, 1,
                             std::min(options.calibration_windows, kMostSampledWindows));
}

CompressionMemory EstimateCompressionMemory(const ModelConfig& config, int64_t checkpoint_bytes,
                                            const CompressOptions& options,
                                            const FitDevice& device) {
  const bool on_gpu = device.name() != "cpu";
  int64_t encoding = 0;
  const absl::StatusOr<TableTypes> table_types =
      ChooseTableTypes(config, options.embedding, options.head, options.bits_per_weight);
  int64_t compressed = table_types.ok() ? TableBytes(config, *table_types) : 0;
  int64_t layer_weights = 0;  // of a layer's sites, as they are and transposed or decoded
  for (const LinearSite& site : LinearSites(config)) {
    // Moments of inputs and outputs, the same folded, and a factor and an inverse; on a GPU also
    // the weights to be and their errors, for all rows at a time.
    const int64_t of_rows = on_gpu ? 5 : 2;
    encoding = std::max(encoding, (5 * site.cols + of_rows * site.rows) * site.cols * kDouble);
    compressed +=
        static_cast<int64_t>(static_cast<double>(site.num_weights()) * options.bits_per_weight / 8);
    if (site.layer == 0) layer_weights += 2 * site.num_weights() * kFloat;
  }
  const int64_t always = kProgramBytes + compressed;
  int64_t working = layer_weights + encoding;  // where the arithmetic is done
  if (options.calibration_windows > 0) {
    const int64_t window_tokens = CalibrationWindowTokens(config, options);
    const int64_t num_tokens = options.calibration_windows * window_tokens;
    const int64_t streams =
        LayerFitMemory(config, num_tokens, window_tokens, device.batch_tokens());
    const int64_t head_rows =
        on_gpu ? config.vocab_size : std::min<int64_t>(kCpuHeadRowsAtOnce, config.vocab_size);
    const int64_t head = 2 * head_rows * config.hidden_size * kFloat;
    const int64_t windows = SampledWindowsAtOnce(config, options, on_gpu);
    const int64_t sampling =
        options.calibration_files.empty()
            ? windows * (CacheBytesOfWindow(config, options) + config.vocab_size * kFloat) +
                  (on_gpu ? checkpoint_bytes : 0)
            : 0;
    working = std::max(
        {streams + working, streams + head + LogitScaleMemory(config),
         SensitivityMemory(config, device.batch_tokens()) + std::max(2 * layer_weights, head),
         sampling});
  }
  CompressionMemory memory;
  if (!on_gpu) {
    memory.host_bytes = always + working;
    return memory;
  }
  memory.device_bytes = working + device.workspace_bytes();
  // A layer's weights as floats, those of a site decoded, a batch of a stream, and of a codec that
  // is fitted on CPUs its moments.
  memory.host_bytes = always + layer_weights +
                      2 * device.batch_tokens() * config.hidden_size * kFloat +
                      (options.codec == "fold" ? 0 : encoding);
  return memory;
}

}  // namespace ultrasketch
