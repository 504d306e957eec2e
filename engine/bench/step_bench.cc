#include "engine/bench/step_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/backends/backend.h"
#include "engine/backends/cache_token_bytes.h"
#include "engine/backends/cuda/cuda_plugin.h"
#include "engine/base/status.h"
#include "engine/bench/kernel_bench.h"
#include "engine/bench/model_presets.h"
#include "engine/bench/random_site.h"
#include "engine/bench/step_parts.h"
#include "engine/codecs/grouped/grouped_table.h"
#include "engine/format/model_config.h"
#include "engine/models/decoder_layer.h"
#include "engine/models/layer_table.h"
#include "engine/models/vocabulary_tables.h"

namespace ultrasketch {
namespace {

// A model whose layers have the same random weights, each in device memory of its own.
class SyntheticModel {
 public:
  static absl::StatusOr<std::unique_ptr<SyntheticModel>> Load(const ModelConfig& config,
                                                              const std::string& codec,
                                                              const StepBenchOptions& options,
                                                              Backend& backend) {
    std::unique_ptr<SyntheticModel> model(new SyntheticModel(config, backend));
    US_RETURN_IF_ERROR(model->LoadLayers(codec, options.bits_per_weight));
    US_RETURN_IF_ERROR(model->LoadRest(options, codec == "dense" ? "dense" : options.table));
    return model;
  }

  int64_t weight_bytes() const { return weight_bytes_; }

  // Of a step: all of it, or without the products of the layers.
  enum class Part { kWhole, kWithoutProducts };

  // Median seconds of a step.
  absl::StatusOr<double> Time(const StepShape& shape, double least_seconds,
                              Part part = Part::kWhole) {
    const RandomStep step(shape.batch, shape.num_cached, shape.num_new,
                          attention_.layout.block_size, config_.vocab_size);
    constexpr int kWarmUps = 3;
    for (int i = 0; i < kWarmUps; ++i) US_RETURN_IF_ERROR(Run(step.input(), part));
    std::vector<double> seconds;
    const auto start = std::chrono::steady_clock::now();
    while (seconds.size() < 200) {
      const auto begin = std::chrono::steady_clock::now();
      US_RETURN_IF_ERROR(Run(step.input(), part));
      const auto end = std::chrono::steady_clock::now();
      seconds.push_back(std::chrono::duration<double>(end - begin).count());
      const std::chrono::duration<double> spent = end - start;
      if (seconds.size() >= 5 && spent.count() > least_seconds) break;
    }
    std::sort(seconds.begin(), seconds.end());
    return seconds[seconds.size() / 2];
  }

 private:
  SyntheticModel(const ModelConfig& config, Backend& backend)
      : config_(config),
        shape_(config),
        backend_(backend),
        ones_(static_cast<size_t>(config.hidden_size), 1.0f) {}

  absl::Status LoadLayers(const std::string& codec, double bits_per_weight) {
    for (const LinearSite& site : LinearSites(config_)) {
      if (site.layer == 0) sites_.emplace_back(site, codec, bits_per_weight);
    }
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      DecoderLayer loaded;
      US_RETURN_IF_ERROR(LoadLayerVectors(config_, layer, backend_, loaded));
      for (size_t kind = 0; kind < sites_.size(); ++kind) {
        std::unique_ptr<DeviceLinear>& device = loaded.sites[kind].device;
        US_ASSIGN_OR_RETURN(device, backend_.LoadLinear(sites_[kind].linear(), {}));
        weight_bytes_ += device->resident_bytes();
      }
      layers_.push_back(std::move(loaded));
    }
    return absl::OkStatus();
  }

  absl::Status LoadRest(const StepBenchOptions& options, const std::string& table) {
    table_ = std::make_unique<RandomSite>(EmbeddingSite(config_), table, 16);
    US_ASSIGN_OR_RETURN(embedding_, backend_.LoadEmbedding(table_->encoded()));
    US_ASSIGN_OR_RETURN(final_norm_, backend_.LoadVector(FloatView(ones_)));
    int64_t max_tokens = 1;
    int64_t max_batch = 1;
    int64_t max_blocks = 1;
    const int64_t block_size = attention_.layout.block_size;
    for (const StepShape& shape : options.shapes) {
      max_tokens = std::max(max_tokens, shape.batch * shape.num_new);
      max_batch = std::max(max_batch, shape.batch);
      const int64_t blocks_each = (shape.num_cached + shape.num_new + block_size - 1) / block_size;
      max_blocks = std::max(max_blocks, shape.batch * blocks_each);
    }
    attention_.layout.num_layers = config_.num_layers;
    attention_.layout.num_kv_heads = config_.num_kv_heads;
    attention_.layout.head_dim = config_.head_dim;
    attention_.layout.num_blocks = max_blocks;
    attention_.layout.type = options.kv_cache_type;
    US_ASSIGN_OR_RETURN(attention_.layout.token_bytes,
                        CacheTokenBytes(backend_, options.kv_cache_type, config_.head_dim));
    US_ASSIGN_OR_RETURN(attention_.cache, backend_.Allocate(attention_.layout.total_bytes()));
    const std::vector<float> frequencies = RopeInverseFrequencies(config_);
    US_ASSIGN_OR_RETURN(attention_.inverse_frequencies,
                        backend_.LoadVector(FloatView(frequencies)));
    US_ASSIGN_OR_RETURN(buffers_, LayerBuffers::Allocate(config_, max_tokens, backend_));
    US_ASSIGN_OR_RETURN(logits_,
                        backend_.AllocateWorkspace(max_batch * int64_t{config_.vocab_size} *
                                                   static_cast<int64_t>(sizeof(float))));
    return absl::OkStatus();
  }

  absl::Status Run(const StepInput& input, Part part) {
    US_RETURN_IF_ERROR(backend_.BeginStep(input));
    backend_.Embed(*embedding_, *buffers_.hidden);
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      if (part == Part::kWhole) {
        RunDecoderLayer(shape_, layers_[layer], static_cast<int>(layer), attention_, buffers_,
                        backend_);
      } else {
        RunWithoutProducts(layers_[layer], static_cast<int>(layer));
      }
    }
    backend_.Logits({buffers_.hidden.get(), final_norm_.get(), shape_.epsilon}, *embedding_,
                    *logits_);
    return backend_.EndStep();
  }

  // What RunDecoderLayer does between its products, on whatever is left in the buffers.
  void RunWithoutProducts(const DecoderLayer& layer, int cache_layer) {
    for (const LayerRow& row : kLayerTable) {
      const RowArguments arguments =
          ArgumentsOf(row, shape_, layer, cache_layer, attention_, buffers_);
      backend_.ApplyWithoutProduct(arguments.input, arguments.site);
    }
  }

  ModelConfig config_;
  DecoderShape shape_;
  Backend& backend_;
  std::vector<float> ones_;
  std::vector<RandomSite> sites_;  // of a layer; layers_ may refer to them
  std::vector<DecoderLayer> layers_;
  std::unique_ptr<RandomSite> table_;  // embedding and head in one
  std::unique_ptr<DeviceEmbedding> embedding_;
  std::unique_ptr<DeviceVector> final_norm_;
  AttentionState attention_;
  LayerBuffers buffers_;
  std::unique_ptr<DeviceBuffer> logits_;
  int64_t weight_bytes_ = 0;
};

absl::Status CheckOptions(const StepBenchOptions& options) {
  if (options.codec != "fold" && options.codec != "absmaxmin") {
    return absl::InvalidArgumentError(
        absl::StrCat("codec: expected fold or absmaxmin, found ", Quoted(options.codec)));
  }
  if (options.table != "dense" && !GroupedTypeFromName(options.table).has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("table: expected dense, int8 or int4, found ", Quoted(options.table)));
  }
  return absl::OkStatus();
}

int64_t NumTokens(const StepShape& shape) { return shape.batch * shape.num_new; }

// Adds to dense_cublas_seconds, the rest of the step, the products.
absl::Status ReckonCublas(int ordinal, const StepBenchOptions& options, StepBenchResult& result) {
  KernelBenchOptions kernels;
  kernels.cancelled = options.cancelled;
  US_ASSIGN_OR_RETURN(kernels.shapes, PresetShapes(options.preset));
  kernels.token_counts.clear();
  for (const StepShape& shape : options.shapes) {
    std::vector<int64_t>& counts = kernels.token_counts;
    if (std::find(counts.begin(), counts.end(), NumTokens(shape)) == counts.end()) {
      counts.push_back(NumTokens(shape));
    }
  }
  US_ASSIGN_OR_RETURN(const KernelBenchResult measured, MeasureCudaKernels(ordinal, kernels));
  for (StepMeasurement& step : result.measurements) {
    double microseconds = 0;
    for (const KernelMeasurement& kernel : measured.measurements) {
      if (kernel.num_tokens == NumTokens(step.shape)) microseconds += kernel.dense_microseconds;
    }
    step.dense_cublas_seconds += result.num_layers * microseconds * 1e-6;
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<StepShape> StepShapes(const std::vector<int64_t>& batches, int64_t context,
                                  int64_t prompt) {
  std::vector<StepShape> shapes;
  shapes.reserve(batches.size() + 1);
  for (const int64_t batch : batches) {
    shapes.push_back({absl::StrCat("decode_", batch), batch, context - 1, 1});
  }
  if (prompt > 0) shapes.push_back({absl::StrCat("prefill_", prompt), 1, 0, prompt});
  return shapes;
}

absl::StatusOr<StepBenchResult> MeasureSteps(const StepBenchOptions& options) {
  US_RETURN_IF_ERROR(CheckOptions(options));
  US_ASSIGN_OR_RETURN(const nlohmann::ordered_json json, PresetConfig(options.preset));
  US_ASSIGN_OR_RETURN(ModelConfig config, ParseModelConfig(nlohmann::json(json), "preset"));
  if (options.num_layers > 0) config.num_layers = std::min(options.num_layers, config.num_layers);
  US_ASSIGN_OR_RETURN(std::shared_ptr<Backend> backend, CreateBackend(options.device, {}));
  const std::optional<int> ordinal = CudaOrdinal(backend->name());
  StepBenchResult result;
  result.device = backend->description();
  result.num_layers = config.num_layers;
  for (const StepShape& shape : options.shapes) result.measurements.push_back({shape, 0, 0});
  double done = 0;
  for (const bool is_dense : {true, false}) {
    US_ASSIGN_OR_RETURN(
        const auto model,
        SyntheticModel::Load(config, is_dense ? "dense" : options.codec, options, *backend));
    (is_dense ? result.dense_weight_bytes : result.weight_bytes) = model->weight_bytes();
    for (StepMeasurement& measurement : result.measurements) {
      if (options.cancelled != nullptr && options.cancelled->load()) {
        return absl::CancelledError("interrupted");
      }
      US_ASSIGN_OR_RETURN(const double seconds, model->Time(measurement.shape, options.seconds));
      (is_dense ? measurement.dense_seconds : measurement.seconds) = seconds;
      if (is_dense && ordinal.has_value()) {
        US_ASSIGN_OR_RETURN(measurement.dense_cublas_seconds,
                            model->Time(measurement.shape, options.seconds,
                                        SyntheticModel::Part::kWithoutProducts));
      }
      done += 0.5 / static_cast<double>(result.measurements.size());
      if (options.progress) options.progress(done);
    }
  }
  if (ordinal.has_value()) {
    backend = nullptr;  // and with it the device's memory
    const absl::Status status = ReckonCublas(*ordinal, options, result);
    if (absl::IsCancelled(status)) return status;
    result.cublas_error = std::string(status.message());
    if (!status.ok()) {
      for (StepMeasurement& step : result.measurements) step.dense_cublas_seconds = 0;
    }
  }
  return result;
}

}  // namespace ultrasketch
