#include "engine/bench/sketch_overhead.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>
#include <vector>

#include "absl/types/span.h"

#include "engine/base/status.h"
#include "engine/bench/step_parts.h"
#include "engine/models/decoder_layer.h"
#include "engine/models/layer_table.h"
#include "engine/models/vocabulary_tables.h"

namespace ultrasketch {
namespace {

// Longer ones would let others wait.
constexpr double kLongestStepSeconds = 0.05;
constexpr int64_t kFewestPromptTokens = 16;

int64_t DenseLayerBytes(const ModelConfig& config) {
  int64_t bytes = 0;
  for (const LinearSite& site : LinearSites(config)) {
    if (site.layer == 0) bytes += site.num_weights() * static_cast<int64_t>(sizeof(uint16_t));
  }
  return bytes;
}

int NumLayers(const ModelConfig& config, const SketchOverheadOptions& options) {
  const int64_t layer_bytes = DenseLayerBytes(config);
  const int64_t wanted = (options.dense_bytes + layer_bytes - 1) / layer_bytes;
  return static_cast<int>(std::clamp<int64_t>(wanted, 1, config.num_layers));
}

int64_t PromptTokens(const ModelConfig& config, const SketchOverheadOptions& options) {
  return std::clamp<int64_t>(config.max_position_embeddings - 1, 1, options.prompt_tokens);
}

KvCacheLayout CacheLayout(const ModelConfig& config, const Backend& backend,
                          const SketchOverheadOptions& options) {
  KvCacheLayout layout;
  layout.num_layers = NumLayers(config, options);
  layout.num_kv_heads = config.num_kv_heads;
  layout.head_dim = config.head_dim;
  layout.type = options.kv_cache_type;
  layout.block_size = backend.cache_block_granularity();
  layout.token_bytes = backend.cache_token_bytes(layout.type, layout.head_dim);
  layout.num_blocks = layout.BlocksForTokens(PromptTokens(config, options) + 1);
  return layout;
}

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// The model's steps, with layers of several kinds.
class Steps {
 public:
  enum Layers : size_t { kCompressed, kDense, kNone };
  static constexpr size_t kNumKinds = 3;
  using Seconds = std::array<double, kNumKinds>;

  Steps(const Checkpoint& checkpoint, Backend& backend, const SketchOverheadOptions& options)
      : checkpoint_(checkpoint),
        config_(checkpoint.config()),
        shape_(config_),
        backend_(backend),
        options_(options),
        ones_(static_cast<size_t>(config_.hidden_size), 1.0f) {}

  absl::Status Load() {
    US_ASSIGN_OR_RETURN(VocabularyTables tables, LoadVocabularyTables(checkpoint_));
    US_ASSIGN_OR_RETURN(embedding_, backend_.LoadEmbedding(std::move(tables.embedding)));
    if (tables.head != nullptr) {
      US_ASSIGN_OR_RETURN(untied_head_, backend_.LoadEmbedding(std::move(tables.head)));
    }
    US_ASSIGN_OR_RETURN(final_norm_, backend_.LoadVector(FloatView(ones_)));
    const int num_layers = NumLayers(config_, options_);
    if (backend_.name() == "cpu") {
      US_ASSIGN_OR_RETURN(host_values_, backend_.Allocate(num_layers * DenseLayerBytes(config_)));
    }
    for (int layer = 0; layer < num_layers; ++layer) {
      US_RETURN_IF_ERROR(CheckNotCancelled());
      US_ASSIGN_OR_RETURN(DecoderLayer compressed, LoadDecoderLayer(checkpoint_, layer, backend_));
      if (compressed.site(SiteKind::kMlpInput).encoded->codec_name() == "dense") {
        return absl::FailedPreconditionError("the model's layers are not compressed");
      }
      US_ASSIGN_OR_RETURN(DecoderLayer dense, LoadDenseLayer(layer));
      layers_[kCompressed].push_back(std::move(compressed));
      layers_[kDense].push_back(std::move(dense));
    }
    attention_.layout = CacheLayout(config_, backend_, options_);
    US_ASSIGN_OR_RETURN(attention_.cache, backend_.Allocate(attention_.layout.total_bytes()));
    const std::vector<float> frequencies = RopeInverseFrequencies(config_);
    US_ASSIGN_OR_RETURN(attention_.inverse_frequencies,
                        backend_.LoadVector(FloatView(frequencies)));
    US_ASSIGN_OR_RETURN(buffers_,
                        LayerBuffers::Allocate(config_, PromptTokens(config_, options_), backend_));
    US_ASSIGN_OR_RETURN(logits_, backend_.AllocateWorkspace(int64_t{config_.vocab_size} *
                                                            static_cast<int64_t>(sizeof(float))));
    return absl::OkStatus();
  }

  // The longest prompt, a power of two or the most there may be, whose steps are short enough.
  absl::StatusOr<int64_t> ChoosePromptTokens() {
    const int64_t most = PromptTokens(config_, options_);
    int64_t num_tokens = std::min(most, kFewestPromptTokens);
    while (num_tokens < most) {
      const RandomStep step(1, 0, num_tokens, attention_.layout.block_size, config_.vocab_size);
      double seconds = 0;
      for (const Layers layers : {kDense, kCompressed}) {
        US_ASSIGN_OR_RETURN(const double once, Time(step.input(), layers));
        seconds = std::max(seconds, once);
      }
      const int64_t next = std::min(most, 2 * num_tokens);
      if (seconds * static_cast<double>(next) / static_cast<double>(num_tokens) >
          kLongestStepSeconds) {
        break;
      }
      num_tokens = next;
    }
    return num_tokens;
  }

  // Compressed over dense, of a step with all of the model's layers.
  absl::StatusOr<double> Ratio(int64_t num_cached, int64_t num_new) {
    const RandomStep step(1, num_cached, num_new, attention_.layout.block_size, config_.vocab_size);
    US_ASSIGN_OR_RETURN(const Seconds seconds, TimeEach(step.input()));
    const double layers_each =
        static_cast<double>(config_.num_layers) / static_cast<double>(layers_[kCompressed].size());
    const auto whole = [&](Layers layers) {
      const double rest = std::min(seconds[kNone], seconds[layers]);
      return rest + (seconds[layers] - rest) * layers_each;
    };
    return whole(kCompressed) / whole(kDense);
  }

 private:
  // Each layer has its weights in memory of its own, as in a model.
  absl::StatusOr<DecoderLayer> LoadDenseLayer(int layer) {
    DecoderLayer loaded;
    US_RETURN_IF_ERROR(LoadLayerVectors(config_, layer, backend_, loaded));
    const std::vector<LinearSite> sites = LinearSites(config_);
    int64_t offset = layer * DenseLayerBytes(config_);
    for (size_t kind = 0; kind < kNumSiteKinds; ++kind) {
      const LinearSite& site = sites[kind];
      if (layer == 0) values_.push_back(RandomBf16(site.num_weights(), 0x1p-6f));
      const uint16_t* values = values_[kind].data();
      if (host_values_ != nullptr) {
        auto* const copy =
            reinterpret_cast<uint16_t*>(static_cast<uint8_t*>(host_values_->data()) + offset);
        std::copy_n(values, site.num_weights(), copy);
        offset += site.num_weights() * static_cast<int64_t>(sizeof(uint16_t));
        values = copy;
      }
      LoadedLinear& linear = loaded.sites[kind];
      linear.encoded = DenseSite(site, values);
      US_ASSIGN_OR_RETURN(linear.device, backend_.LoadLinear(*linear.encoded, {}));
    }
    return loaded;
  }

  absl::Status CheckNotCancelled() const {
    return options_.is_cancelled() ? absl::CancelledError("the measurement was given up")
                                   : absl::OkStatus();
  }

  absl::StatusOr<double> Time(const StepInput& input, Layers layers) {
    US_RETURN_IF_ERROR(CheckNotCancelled());
    double seconds = 0;
    US_RETURN_IF_ERROR(options_.run([&] {
      const auto begin = std::chrono::steady_clock::now();
      absl::Status status = Run(input, layers_[layers]);
      seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      return status;
    }));
    return seconds;
  }

  // Medians. In turns, so that what disturbs the machine disturbs all kinds.
  absl::StatusOr<Seconds> TimeEach(const StepInput& input) {
    constexpr int kWarmUps = 3;  // repeated steps become graphs on GPUs
    constexpr size_t kFewest = 5;
    constexpr size_t kMost = 50;
    constexpr double kEnoughSeconds = 0.3;
    std::array<std::vector<double>, kNumKinds> measured;
    double spent = 0;
    for (int round = 0; measured[kNone].size() < kMost; ++round) {
      for (size_t kind = 0; kind < kNumKinds; ++kind) {
        US_ASSIGN_OR_RETURN(const double seconds, Time(input, static_cast<Layers>(kind)));
        spent += seconds;
        if (round >= kWarmUps) measured[kind].push_back(seconds);
      }
      if (spent > kEnoughSeconds && measured[kNone].size() >= kFewest) break;
    }
    Seconds medians = {};
    for (size_t kind = 0; kind < kNumKinds; ++kind) medians[kind] = Median(measured[kind]);
    return medians;
  }

  absl::Status Run(const StepInput& input, absl::Span<const DecoderLayer> layers) {
    US_RETURN_IF_ERROR(backend_.BeginStep(input));
    backend_.Embed(*embedding_, *buffers_.hidden);
    for (size_t layer = 0; layer < layers.size(); ++layer) {
      RunDecoderLayer(shape_, layers[layer], static_cast<int>(layer), attention_, buffers_,
                      backend_);
    }
    backend_.Logits({buffers_.hidden.get(), final_norm_.get(), shape_.epsilon},
                    untied_head_ != nullptr ? *untied_head_ : *embedding_, *logits_);
    return backend_.EndStep();
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const DecoderShape shape_;
  Backend& backend_;
  const SketchOverheadOptions& options_;
  const std::vector<float> ones_;
  // Of an uncompressed layer, by site; on the CPU, which multiplies with weights where they are, a
  // copy for each layer.
  std::vector<std::vector<uint16_t>> values_;
  std::unique_ptr<DeviceBuffer> host_values_;
  std::unique_ptr<DeviceEmbedding> embedding_;
  std::unique_ptr<DeviceEmbedding> untied_head_;  // null: the embedding is the head
  std::unique_ptr<DeviceVector> final_norm_;
  std::array<std::vector<DecoderLayer>, kNumKinds> layers_;  // by kind
  AttentionState attention_;
  LayerBuffers buffers_;
  std::unique_ptr<DeviceBuffer> logits_;
};

}  // namespace

int64_t SketchOverheadBytes(const Checkpoint& checkpoint, const Backend& backend,
                            const SketchOverheadOptions& options) {
  const ModelConfig& config = checkpoint.config();
  int64_t table_bytes = 0;
  int64_t other_bytes = 0;
  for (const std::string& name : checkpoint.tensor_names()) {
    const bool is_table =
        name.rfind("model.embed_tokens.", 0) == 0 || name.rfind("lm_head.", 0) == 0;
    (is_table ? table_bytes : other_bytes) += checkpoint.Find(name)->num_bytes();
  }
  const int num_layers = NumLayers(config, options);
  // On CPUs tables stay where they are mapped.
  return (backend.name() == "cpu" ? 0 : table_bytes) +
         num_layers * (DenseLayerBytes(config) + other_bytes / config.num_layers) +
         CacheLayout(config, backend, options).total_bytes();
}

absl::StatusOr<SketchOverhead> MeasureSketchOverhead(const Checkpoint& checkpoint, Backend& backend,
                                                     const SketchOverheadOptions& options) {
  Steps steps(checkpoint, backend, options);
  US_RETURN_IF_ERROR(steps.Load());
  SketchOverhead overhead;
  US_ASSIGN_OR_RETURN(const int64_t prompt_tokens, steps.ChoosePromptTokens());
  US_ASSIGN_OR_RETURN(overhead.prefill, steps.Ratio(0, prompt_tokens));
  US_ASSIGN_OR_RETURN(overhead.decode, steps.Ratio(prompt_tokens, 1));
  return overhead;
}

}  // namespace ultrasketch
