#include "engine/compress/sensitivity.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/check.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "engine/compress/calibration_layer.h"
#include "engine/compress/decoder_math.h"
#include "engine/compress/products.h"
#include "engine/models/layer_table.h"

namespace ultrasketch {
namespace {

// |y' - y|^2 / |y|^2 of the sketched site: what about half a bit per weight leaves.
constexpr double kRelativeError = 0.4;

// Tokens of a deep model are fewer: the time grows with the square of the layers.
constexpr int64_t kWindowTokens = 128;
constexpr int kDeep = 12;
int64_t NumWindows(const ModelConfig& config) { return config.num_layers > kDeep ? 4 : 8; }

// Tokens whose predictions are compared, and rows of the head that are multiplied at once.
constexpr int64_t kLogitTokens = 256;
constexpr int64_t kHeadRowsAtOnce = 4096;

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
                   const CalibrationText& text, const SensitivityOptions& options, ThreadPool& pool)
      : checkpoint_(checkpoint),
        config_(checkpoint.config()),
        sites_(sites),
        options_(options),
        pool_(pool),
        inputs_(config_, pool) {
    const auto num_windows = static_cast<int64_t>(text.windows.size());
    const int64_t used = std::min(NumWindows(config_), num_windows);
    for (int64_t i = 0; i < used; ++i) {
      const auto& window = text.windows[static_cast<size_t>(i * num_windows / used)];
      const auto count = std::min(kWindowTokens, static_cast<int64_t>(window.size()));
      token_ids_.insert(token_ids_.end(), window.begin(), window.begin() + count);
      window_tokens_.push_back(count);
    }
    num_tokens_ = static_cast<int64_t>(token_ids_.size());
  }

  absl::StatusOr<std::vector<double>> Run() {
    US_RETURN_IF_ERROR(Embed());
    US_RETURN_IF_ERROR(ReadLastNormAndHead());
    // Each layer is read once, for all streams that pass through it.
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      US_ASSIGN_OR_RETURN(const DenseLayer loaded,
                          DenseLayer::Read(checkpoint_, sites_, layer, pool_));
      const auto run = [&](auto on_output, std::vector<float>& hidden) {
        loaded.Run(inputs_, window_tokens_, on_output, pool_, hidden);
      };
      const auto as_it_is = [](const LinearSite&, float*) {};
      // Every disturbed stream that started before moves on.
      for (std::vector<float>& stream : streams_) run(as_it_is, stream);
      for (const LayerRow& row : kLayerTable) {
        const auto disturb = [&](const LinearSite& site, float* y) {
          if (site.kind != row.site) return;
          DisturbOutputs(options_.seed, /*stream=*/streams_.size(), num_tokens_, site.rows, y,
                         pool_);
        };
        std::vector<float> stream = hidden_;
        run(disturb, stream);
        streams_.push_back(std::move(stream));
      }
      run(as_it_is, hidden_);
      if (options_.progress) {
        const double done = static_cast<double>(layer + 1) / config_.num_layers;
        // A layer's time grows with the number of streams that started before it.
        US_RETURN_IF_ERROR(options_.progress(done * done));
      }
    }
    return Divergences();
  }

 private:
  absl::Status Embed() {
    const std::string name = "model.embed_tokens.weight";
    const int64_t width = config_.hidden_size;
    US_ASSIGN_OR_RETURN(const TensorView table,
                        GetTensor(checkpoint_, name, {}, {config_.vocab_size, width}));
    hidden_.resize(static_cast<size_t>(num_tokens_ * width));
    for (int64_t token = 0; token < num_tokens_; ++token) {
      const int32_t id = token_ids_[static_cast<size_t>(token)];
      US_CHECK(id >= 0 && id < config_.vocab_size);
      CopyToFloat(table, id * width, width, hidden_.data() + token * width);
    }
    return absl::OkStatus();
  }

  absl::Status ReadLastNormAndHead() {
    US_ASSIGN_OR_RETURN(last_norm_, ReadVector(checkpoint_, kFinalNormName, config_.hidden_size));
    const std::string head =
        config_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
    US_ASSIGN_OR_RETURN(
        head_, GetTensor(checkpoint_, head, {}, {config_.vocab_size, config_.hidden_size}));
    return absl::OkStatus();
  }

  // The normalized last hidden states of the compared tokens.
  std::vector<float> Compared(const std::vector<float>& hidden) {
    input_.resize(hidden.size());
    NormalizeRows(hidden.data(), last_norm_, config_.rms_norm_eps, num_tokens_, input_.data(),
                  pool_);
    const int64_t width = config_.hidden_size;
    const int64_t count = std::min(kLogitTokens, num_tokens_);
    std::vector<float> compared;
    for (int64_t i = 0; i < count; ++i) {
      const float* row = input_.data() + (i * num_tokens_ / count) * width;
      compared.insert(compared.end(), row, row + width);
    }
    return compared;
  }

  // logits [num_rows, vocab_size] = x head^T.
  std::vector<float> Logits(const std::vector<float>& x) {
    const int64_t width = config_.hidden_size;
    const int64_t num_rows = static_cast<int64_t>(x.size()) / width;
    std::vector<float> logits(static_cast<size_t>(num_rows * config_.vocab_size));
    std::vector<float> rows, transposed, part;
    for (int64_t first = 0; first < config_.vocab_size; first += kHeadRowsAtOnce) {
      const int64_t count = std::min(kHeadRowsAtOnce, config_.vocab_size - first);
      rows.resize(static_cast<size_t>(count * width));
      transposed.resize(rows.size());
      part.resize(static_cast<size_t>(num_rows * count));
      CopyToFloat(head_, first * width, count * width, rows.data());
      Transpose(rows.data(), count, width, transposed.data(), pool_);
      MultiplyTransposed(x.data(), transposed.data(), num_rows, count, width, part.data(), pool_);
      for (int64_t row = 0; row < num_rows; ++row) {
        std::copy_n(part.data() + row * count, count,
                    logits.data() + row * config_.vocab_size + first);
      }
    }
    return logits;
  }

  std::vector<double> Divergences() {
    const std::vector<float> reference = Logits(Compared(hidden_));
    const int64_t vocab_size = config_.vocab_size;
    const int64_t num_rows = static_cast<int64_t>(reference.size()) / vocab_size;
    std::vector<double> divergences;
    for (const std::vector<float>& stream : streams_) {
      const std::vector<float> logits = Logits(Compared(stream));
      std::vector<double> losses(static_cast<size_t>(num_rows));
      pool_.ParallelFor(num_rows, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row) {
          const float* p = reference.data() + row * vocab_size;
          const float* q = logits.data() + row * vocab_size;
          const float p_maximum = *std::max_element(p, p + vocab_size);
          const float q_maximum = *std::max_element(q, q + vocab_size);
          double p_of_p = 0, p_of_q = 0, ignored = 0;
          const double p_sum = SumOfExp(p, p_maximum, 1.0f, p, vocab_size, p_of_p);
          SumOfExp(p, p_maximum, 1.0f, q, vocab_size, p_of_q);
          const double q_sum = SumOfExp(q, q_maximum, 1.0f, q, vocab_size, ignored);
          losses[static_cast<size_t>(row)] = p_of_p / p_sum - p_maximum - std::log(p_sum) -
                                             (p_of_q / p_sum - q_maximum - std::log(q_sum));
        }
      });
      double total = 0;
      for (const double loss : losses) total += loss;
      divergences.push_back(std::max(0.0, total / static_cast<double>(num_rows)));
    }
    return divergences;
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const absl::Span<const LinearSite> sites_;
  const SensitivityOptions& options_;
  ThreadPool& pool_;
  const SiteInputs inputs_;
  std::vector<int32_t> token_ids_;
  std::vector<int64_t> window_tokens_;
  int64_t num_tokens_ = 0;
  std::vector<float> last_norm_;
  TensorView head_;
  std::vector<float> hidden_;                // [num_tokens, hidden_size], nothing disturbed
  std::vector<std::vector<float>> streams_;  // the same, one for each site, that site disturbed
  std::vector<float> input_;
};

}  // namespace

absl::StatusOr<std::vector<double>> MeasureSensitivities(const Checkpoint& checkpoint,
                                                         absl::Span<const LinearSite> sites,
                                                         const CalibrationText& text,
                                                         const SensitivityOptions& options,
                                                         ThreadPool& pool) {
  return SensitivityMeter(checkpoint, sites, text, options, pool).Run();
}

int64_t SensitivityMemory(const ModelConfig& config) {
  const int64_t streams = kNumSiteKinds * config.num_layers + 1;
  const int64_t scratch = 4 * (config.hidden_size + config.intermediate_size);
  const int64_t logits =
      2 * kLogitTokens * config.vocab_size + 2 * kHeadRowsAtOnce * config.hidden_size;
  return static_cast<int64_t>(sizeof(float)) *
         (NumWindows(config) * kWindowTokens * (streams * config.hidden_size + scratch) + logits);
}

}  // namespace ultrasketch
