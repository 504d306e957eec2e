#include "engine/compress/sensitivity.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/check.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "engine/compress/calibration_layer.h"
#include "engine/models/layer_table.h"

namespace ultrasketch {
namespace {

// |y' - y|^2 / |y|^2 of the sketched site: what about half a bit per weight leaves.
constexpr double kRelativeError = 0.4;

// Tokens of a deep model are fewer: the time grows with the square of the layers.
constexpr int64_t kWindowTokens = 128;
constexpr int kDeep = 12;
int64_t NumWindows(const ModelConfig& config) { return config.num_layers > kDeep ? 4 : 8; }

// Tokens whose predictions are compared.
constexpr int64_t kLogitTokens = 256;

// A sketch's outputs y' are a least-squares fit: y - y' is uncorrelated with y', so that y' is y
// shrunk by 1 - D, plus noise of the energy D (1 - D) |y|^2, for a relative error D.
void DisturbOutputs(uint64_t seed, uint64_t stream, int64_t num_tokens, int64_t rows, float* y,
                    ThreadPool& pool) {
  const auto shrink = static_cast<float>(1 - kRelativeError);
  const double noise = std::sqrt(kRelativeError * (1 - kRelativeError));
  pool.ParallelFor(rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      double energy = 0;
      for (int64_t token = 0; token < num_tokens; ++token) {
        const double value = y[token * rows + row];
        energy += value * value;
      }
      const double deviation = noise * std::sqrt(energy / static_cast<double>(num_tokens));
      for (int64_t token = 0; token < num_tokens; ++token) {
        float& value = y[token * rows + row];
        value =
            shrink * value +
            static_cast<float>(
                deviation * NormalDouble(seed, stream, static_cast<uint64_t>(token * rows + row)));
      }
    }
  });
}

class SensitivityMeter {
 public:
  SensitivityMeter(const Checkpoint& checkpoint, absl::Span<const LinearSite> sites,
                   const CalibrationText& text, const SensitivityOptions& options,
                   FitDevice& device, ThreadPool& pool)
      : checkpoint_(checkpoint),
        config_(checkpoint.config()),
        sites_(sites),
        options_(options),
        device_(device),
        pool_(pool) {
    const auto num_windows = static_cast<int64_t>(text.windows.size());
    const int64_t used = std::min(NumWindows(config_), num_windows);
    for (int64_t i = 0; i < used; ++i) {
      const auto& window = text.windows[static_cast<size_t>(i * num_windows / used)];
      const auto count = std::min(kWindowTokens, static_cast<int64_t>(window.size()));
      token_ids_.insert(token_ids_.end(), window.begin(), window.begin() + count);
      window_tokens_.push_back(count);
    }
    num_tokens_ = static_cast<int64_t>(token_ids_.size());
    stream_size_ = num_tokens_ * config_.hidden_size;
  }

  absl::StatusOr<std::vector<double>> Run() {
    US_RETURN_IF_ERROR(Embed());
    US_ASSIGN_OR_RETURN(const SiteInputs inputs, SiteInputs::Make(config_, device_));
    const auto as_it_is = [](const LinearSite&, float*) { return absl::OkStatus(); };
    // Each layer is read once, for all streams that pass through it.
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      US_ASSIGN_OR_RETURN(const DenseLayer loaded,
                          DenseLayer::Read(checkpoint_, sites_, layer, device_));
      // Every disturbed stream that started before moves on, several at once.
      const int64_t num_streams = int64_t{layer} * kNumSiteKinds;
      for (int64_t first = 0; first < num_streams; first += StreamsAtOnce(device_.batch_tokens())) {
        const int64_t count = std::min(StreamsAtOnce(device_.batch_tokens()), num_streams - first);
        std::vector<int64_t> window_tokens;
        for (int64_t i = 0; i < count; ++i) {
          window_tokens.insert(window_tokens.end(), window_tokens_.begin(), window_tokens_.end());
        }
        US_RETURN_IF_ERROR(loaded.Run(inputs, window_tokens, as_it_is, Stream(first)));
      }
      for (const LayerRow& row : kLayerTable) {
        const int64_t stream = num_streams + static_cast<int64_t>(row.site);
        const auto disturb = [&](const LinearSite& site, float* y) {
          return site.kind == row.site ? Disturb(site, static_cast<uint64_t>(stream), y)
                                       : absl::OkStatus();
        };
        device_.Copy(hidden_->data(), stream_size_, Stream(stream));
        US_RETURN_IF_ERROR(loaded.Run(inputs, window_tokens_, disturb, Stream(stream)));
      }
      US_RETURN_IF_ERROR(loaded.Run(inputs, window_tokens_, as_it_is, hidden_->data()));
      if (options_.progress) {
        const double done = static_cast<double>(layer + 1) / config_.num_layers;
        // A layer's time grows with the number of streams that started before it.
        US_RETURN_IF_ERROR(options_.progress(done * done));
      }
    }
    return Divergences();
  }

 private:
  int64_t StreamsAtOnce(int64_t batch_tokens) const {
    return std::max<int64_t>(1, batch_tokens / num_tokens_);
  }

  float* Stream(int64_t index) const { return streams_->data() + index * stream_size_; }

  absl::Status Embed() {
    const std::string name = "model.embed_tokens.weight";
    const int64_t width = config_.hidden_size;
    US_ASSIGN_OR_RETURN(const TensorView table,
                        GetTensor(checkpoint_, name, {}, {config_.vocab_size, width}));
    std::vector<float> hidden(static_cast<size_t>(stream_size_));
    for (int64_t token = 0; token < num_tokens_; ++token) {
      const int32_t id = token_ids_[static_cast<size_t>(token)];
      US_CHECK(id >= 0 && id < config_.vocab_size);
      CopyToFloat(table, id * width, width, hidden.data() + token * width);
    }
    US_ASSIGN_OR_RETURN(hidden_, LoadArray(hidden, device_));
    US_ASSIGN_OR_RETURN(streams_,
                        device_.Allocate(kNumSiteKinds * config_.num_layers * stream_size_));
    return absl::OkStatus();
  }

  absl::Status Disturb(const LinearSite& site, uint64_t stream, float* y) {
    outputs_.resize(static_cast<size_t>(num_tokens_ * site.rows));
    US_RETURN_IF_ERROR(device_.Download(y, absl::MakeSpan(outputs_)));
    DisturbOutputs(options_.seed, stream, num_tokens_, site.rows, outputs_.data(), pool_);
    return device_.Upload(outputs_, y);
  }

  absl::StatusOr<std::vector<double>> Divergences() {
    const int64_t width = config_.hidden_size;
    const int64_t vocab_size = config_.vocab_size;
    US_ASSIGN_OR_RETURN(const std::vector<float> norm_values,
                        ReadVector(checkpoint_, kFinalNormName, width));
    US_ASSIGN_OR_RETURN(const auto norm, LoadArray(norm_values, device_));
    const std::string head_name =
        config_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
    US_ASSIGN_OR_RETURN(const TensorView head_view,
                        GetTensor(checkpoint_, head_name, {}, {vocab_size, width}));
    US_ASSIGN_OR_RETURN(const auto head, device_.LoadHead(head_view));

    // The tokens whose predictions are compared.
    const int64_t count = std::min(kLogitTokens, num_tokens_);
    std::vector<int64_t> compared;
    for (int64_t i = 0; i < count; ++i) compared.push_back(i * num_tokens_ / count);
    US_ASSIGN_OR_RETURN(const auto rows, device_.Allocate(count * width));
    US_ASSIGN_OR_RETURN(const auto x, device_.Allocate(count * width));
    US_ASSIGN_OR_RETURN(const auto reference, device_.Allocate(count * vocab_size));
    US_ASSIGN_OR_RETURN(const auto logits, device_.Allocate(count * vocab_size));
    const auto compute_logits = [&](const float* hidden, float* out) {
      device_.CopyRows(hidden, width, compared, rows->data());
      device_.Normalize(rows->data(), *norm, config_.rms_norm_eps, count, x->data());
      head->Apply(x->data(), count, out);
    };
    const double unscaled[] = {1.0};
    std::vector<double> losses(static_cast<size_t>(count));
    // The mean cross-entropy against the undisturbed model.
    const auto cross_entropy = [&](const float* of) -> absl::StatusOr<double> {
      US_RETURN_IF_ERROR(device_.CrossEntropies(reference->data(), of, count, vocab_size, unscaled,
                                                absl::MakeSpan(losses)));
      double total = 0;
      for (const double loss : losses) total += loss;
      return total / static_cast<double>(count);
    };
    compute_logits(hidden_->data(), reference->data());
    US_ASSIGN_OR_RETURN(const double entropy, cross_entropy(reference->data()));
    std::vector<double> divergences;
    for (int64_t stream = 0; stream < kNumSiteKinds * config_.num_layers; ++stream) {
      compute_logits(Stream(stream), logits->data());
      US_ASSIGN_OR_RETURN(const double disturbed, cross_entropy(logits->data()));
      divergences.push_back(std::max(0.0, disturbed - entropy));
    }
    return divergences;
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const absl::Span<const LinearSite> sites_;
  const SensitivityOptions& options_;
  FitDevice& device_;
  ThreadPool& pool_;
  std::vector<int32_t> token_ids_;
  std::vector<int64_t> window_tokens_;
  int64_t num_tokens_ = 0;
  int64_t stream_size_ = 0;
  std::unique_ptr<FitArray> hidden_;   // [num_tokens, hidden_size], nothing disturbed
  std::unique_ptr<FitArray> streams_;  // the same, one for each site, that site disturbed
  std::vector<float> outputs_;
};

}  // namespace

absl::StatusOr<std::vector<double>> MeasureSensitivities(const Checkpoint& checkpoint,
                                                         absl::Span<const LinearSite> sites,
                                                         const CalibrationText& text,
                                                         const SensitivityOptions& options,
                                                         FitDevice& device, ThreadPool& pool) {
  return SensitivityMeter(checkpoint, sites, text, options, device, pool).Run();
}

int64_t SensitivityMemory(const ModelConfig& config, int64_t batch_tokens) {
  const int64_t tokens = NumWindows(config) * kWindowTokens;
  const int64_t streams = kNumSiteKinds * config.num_layers + 1;
  const int64_t qkv_width = config.query_width() + 2 * config.key_width();
  const int64_t scratch =
      std::max(2 * config.intermediate_size, qkv_width) +
      std::max({config.intermediate_size, config.query_width(), config.hidden_size});
  const int64_t logits = 2 * kLogitTokens * (config.vocab_size + config.hidden_size);
  return static_cast<int64_t>(sizeof(float)) * (tokens * streams * config.hidden_size +
                                                std::max(batch_tokens, tokens) * scratch + logits);
}

}  // namespace ultrasketch
