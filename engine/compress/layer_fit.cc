#include "engine/compress/layer_fit.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/compress/decoder_math.h"
#include "engine/compress/dense_site.h"
#include "engine/compress/logit_scale.h"
#include "engine/compress/norm_refit.h"
#include "engine/compress/products.h"
#include "engine/compress/site_moments.h"

namespace ultrasketch {
namespace {

// Tokens that go through a site together.
constexpr int64_t kBatchTokens = 2048;

// Tokens whose logits decide how sure the compressed model should be.
constexpr int64_t kLogitTokens = 4096;

// Whole windows, consecutive in the text.
struct Batch {
  int64_t first_token = 0;
  int64_t num_tokens = 0;
  std::vector<int64_t> window_tokens;
};

std::vector<Batch> MakeBatches(const CalibrationText& text) {
  std::vector<Batch> batches;
  int64_t first_token = 0;
  for (const auto& window : text.windows) {
    const auto count = static_cast<int64_t>(window.size());
    if (batches.empty() || batches.back().num_tokens + count > kBatchTokens) {
      batches.push_back({first_token, 0, {}});
    }
    batches.back().num_tokens += count;
    batches.back().window_tokens.push_back(count);
    first_token += count;
  }
  return batches;
}

// A site as it is after compression.
class CompressedSiteProduct {
 public:
  CompressedSiteProduct(const EncodedLinear& encoded, std::vector<float> bias)
      : linear_(encoded.PackForCpu()), bias_(std::move(bias)) {}

  // y = W' x + bias
  void Apply(const float* x, int64_t num_tokens, float* y, ThreadPool& pool) {
    const int64_t width = linear_->prepared_width();
    prepared_.resize(static_cast<size_t>(num_tokens * width));
    pool.ParallelFor(num_tokens, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t token = begin; token < end; ++token) {
        linear_->PrepareInput(x + token * linear_->cols(), prepared_.data() + token * width);
      }
    });
    linear_->Multiply(prepared_.data(), num_tokens, false, y, pool);
    AddBias(bias_, num_tokens, linear_->rows(), y);
  }

 private:
  std::unique_ptr<CpuLinear> linear_;
  std::vector<float> bias_;
  std::vector<float> prepared_;
};

void AddInPlace(const std::vector<float>& values, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] += values[static_cast<size_t>(i)];
}

class LayerFitter {
 public:
  LayerFitter(const Checkpoint& checkpoint, absl::Span<const LinearSite> sites,
              const SiteEncoder& encoder, const CalibrationText& text,
              const LayerFitOptions& options, ThreadPool& pool)
      : checkpoint_(checkpoint),
        config_(checkpoint.config()),
        sites_(sites),
        encoder_(encoder),
        text_(text),
        options_(options),
        pool_(pool),
        batches_(MakeBatches(text)),
        num_tokens_(text.num_tokens()),
        hidden_size_(config_.hidden_size),
        inverse_frequencies_(RopeInverseFrequencies(config_)) {}

  absl::StatusOr<LayerFit> Run() {
    US_RETURN_IF_ERROR(Embed());
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      US_RETURN_IF_ERROR(FitAttention(layer));
      US_RETURN_IF_ERROR(FitMlp(layer));
    }
    US_RETURN_IF_ERROR(RefitLastNorm());
    return std::move(fit_);
  }

 private:
  absl::Status Embed() {
    const std::string name = "model.embed_tokens.weight";
    US_ASSIGN_OR_RETURN(const TensorView table,
                        GetTensor(checkpoint_, name, {}, {config_.vocab_size, hidden_size_}));
    dense_.resize(static_cast<size_t>(num_tokens_ * hidden_size_));
    float* out = dense_.data();
    for (const auto& window : text_.windows) {
      for (const int32_t id : window) {
        US_CHECK(id >= 0 && id < config_.vocab_size);
        CopyToFloat(table, id * hidden_size_, hidden_size_, out);
        out += hidden_size_;
      }
    }
    for (const float value : dense_) {
      if (!std::isfinite(value)) return CheckFinite(checkpoint_, name, table);
    }
    compressed_ = dense_;
    return absl::OkStatus();
  }

  absl::Status StartSite() {
    return options_.on_site ? options_.on_site(fit_.sites.size()) : absl::OkStatus();
  }

  absl::StatusOr<DenseSite> ReadDense(int layer, SiteKind kind) {
    const LinearSite& site = sites_[fit_.sites.size()];
    US_CHECK(site.layer == layer && site.kind == kind);
    return DenseSite::Read(site, checkpoint_, pool_);
  }

  // Fits the next site and makes its product.
  CompressedSiteProduct FitSite(const DenseSite& dense, const SiteMoments& moments) {
    FittedSite fitted;
    fitted.encoded = encoder_.Encode(fit_.sites.size(), dense.weights(), moments, pool_);
    fitted.relative_output_error = RelativeOutputError(*fitted.encoded, moments, pool_);
    fitted.relative_weight_error = RelativeWeightError(*fitted.encoded, dense.weights(), pool_);
    fit_.sites.push_back(std::move(fitted));
    return CompressedSiteProduct(*fit_.sites.back().encoded, dense.bias());
  }

  // The moments of a site that reads a norm of both residual streams.
  SiteMoments NormedMoments(const DenseSite& dense, absl::Span<const float> norm) {
    const int64_t cols = dense.site().cols;
    SiteMoments moments;
    moments.input.setZero(cols, cols);
    RowMajorMatrix dense_input = RowMajorMatrix::Zero(cols, cols);
    RowMajorMatrix dense_cross = RowMajorMatrix::Zero(cols, cols);
    for (const Batch& batch : batches_) {
      const float* dense_x = Normed(dense_, batch, norm, dense_x_);
      const float* compressed_x = Normed(compressed_, batch, norm, compressed_x_);
      AddSelfProducts(compressed_x, cols, batch.num_tokens, moments.input.data(), pool_);
      AddOuterProducts(dense_x, cols, compressed_x, cols, batch.num_tokens, dense_cross.data(),
                       pool_);
      AddSelfProducts(dense_x, cols, batch.num_tokens, dense_input.data(), pool_);
    }
    CompleteSymmetric(cols, moments.input.data());
    CompleteSymmetric(cols, dense_input.data());
    SetOutputMoments(dense.site(), dense.weights(), dense_input, dense_cross, moments, pool_);
    return moments;
  }

  const float* Normed(const std::vector<float>& hidden, const Batch& batch,
                      absl::Span<const float> norm, std::vector<float>& out) {
    out.resize(static_cast<size_t>(batch.num_tokens * hidden_size_));
    NormalizeRows(Rows(hidden, batch), norm, config_.rms_norm_eps, batch.num_tokens, out.data(),
                  pool_);
    return out.data();
  }

  const float* Rows(const std::vector<float>& matrix, const Batch& batch) const {
    return matrix.data() + batch.first_token * hidden_size_;
  }
  float* Rows(std::vector<float>& matrix, const Batch& batch) const {
    return matrix.data() + batch.first_token * hidden_size_;
  }

  // Adds a batch to the moments of a site that writes to the residual stream: x is its compressed
  // input; the dense stream is past the site already, the compressed one before it.
  void AddResidualMoments(const DenseSite& dense, const Batch& batch, const float* x,
                          SiteMoments& moments) {
    const int64_t cols = dense.site().cols;
    if (moments.input.size() == 0) {
      moments.input.setZero(cols, cols);
      moments.cross.setZero(hidden_size_, cols);
      moments.output.setZero(hidden_size_);
    }
    target_.resize(static_cast<size_t>(batch.num_tokens * hidden_size_));
    const float* dense_rows = Rows(dense_, batch);
    const float* compressed_rows = Rows(compressed_, batch);
    const std::vector<float>& bias = dense.bias();
    for (int64_t token = 0; token < batch.num_tokens; ++token) {
      for (int64_t i = 0; i < hidden_size_; ++i) {
        const int64_t place = token * hidden_size_ + i;
        float value = dense_rows[place] - compressed_rows[place];
        if (!bias.empty()) value -= bias[static_cast<size_t>(i)];
        target_[static_cast<size_t>(place)] = value;
        moments.output(i) += static_cast<double>(value) * value;
      }
    }
    AddSelfProducts(x, cols, batch.num_tokens, moments.input.data(), pool_);
    AddOuterProducts(target_.data(), hidden_size_, x, cols, batch.num_tokens, moments.cross.data(),
                     pool_);
  }

  absl::Status FitAttention(int layer) {
    const std::string norm_name = absl::StrCat("model.layers.", layer, ".input_layernorm.weight");
    US_ASSIGN_OR_RETURN(const std::vector<float> norm,
                        ReadVector(checkpoint_, norm_name, hidden_size_));
    US_RETURN_IF_ERROR(StartSite());
    US_ASSIGN_OR_RETURN(const DenseSite dense_qkv, ReadDense(layer, SiteKind::kAttentionInput));
    SiteMoments qkv_moments = NormedMoments(dense_qkv, norm);
    CompressedSiteProduct compressed_qkv = FitSite(dense_qkv, qkv_moments);
    US_ASSIGN_OR_RETURN(const std::vector<float> compressed_norm,
                        RefitNorm(norm_name, norm, qkv_moments));
    qkv_moments = {};

    US_RETURN_IF_ERROR(StartSite());
    US_ASSIGN_OR_RETURN(const DenseSite dense_output, ReadDense(layer, SiteKind::kAttentionOutput));
    const int64_t query_width = config_.query_width();
    SiteMoments moments;
    std::vector<float> attended(static_cast<size_t>(num_tokens_ * query_width));
    for (const Batch& batch : batches_) {
      qkv_.resize(static_cast<size_t>(batch.num_tokens * dense_qkv.site().rows));
      // The dense stream moves on.
      attention_.resize(static_cast<size_t>(batch.num_tokens * query_width));
      dense_qkv.Apply(Normed(dense_, batch, norm, dense_x_), batch.num_tokens, qkv_.data(), pool_);
      AttendWindows(config_, inverse_frequencies_, batch.window_tokens, qkv_.data(),
                    attention_.data(), pool_);
      update_.resize(static_cast<size_t>(batch.num_tokens * hidden_size_));
      dense_output.Apply(attention_.data(), batch.num_tokens, update_.data(), pool_);
      AddInPlace(update_, batch.num_tokens * hidden_size_, Rows(dense_, batch));

      float* compressed_attention = attended.data() + batch.first_token * query_width;
      compressed_qkv.Apply(Normed(compressed_, batch, compressed_norm, compressed_x_),
                           batch.num_tokens, qkv_.data(), pool_);
      AttendWindows(config_, inverse_frequencies_, batch.window_tokens, qkv_.data(),
                    compressed_attention, pool_);
      AddResidualMoments(dense_output, batch, compressed_attention, moments);
    }
    CompleteSymmetric(query_width, moments.input.data());
    CompressedSiteProduct compressed_output = FitSite(dense_output, moments);
    for (const Batch& batch : batches_) {
      update_.resize(static_cast<size_t>(batch.num_tokens * hidden_size_));
      compressed_output.Apply(attended.data() + batch.first_token * query_width, batch.num_tokens,
                              update_.data(), pool_);
      AddInPlace(update_, batch.num_tokens * hidden_size_, Rows(compressed_, batch));
    }
    fit_.sites.back().relative_residual_error = RelativeResidualError();
    return absl::OkStatus();
  }

  absl::Status FitMlp(int layer) {
    const std::string norm_name =
        absl::StrCat("model.layers.", layer, ".post_attention_layernorm.weight");
    US_ASSIGN_OR_RETURN(const std::vector<float> norm,
                        ReadVector(checkpoint_, norm_name, hidden_size_));
    US_RETURN_IF_ERROR(StartSite());
    US_ASSIGN_OR_RETURN(const DenseSite dense_gate_up, ReadDense(layer, SiteKind::kMlpInput));
    SiteMoments gate_up_moments = NormedMoments(dense_gate_up, norm);
    CompressedSiteProduct compressed_gate_up = FitSite(dense_gate_up, gate_up_moments);
    US_ASSIGN_OR_RETURN(const std::vector<float> compressed_norm,
                        RefitNorm(norm_name, norm, gate_up_moments));
    gate_up_moments = {};

    US_RETURN_IF_ERROR(StartSite());
    US_ASSIGN_OR_RETURN(const DenseSite dense_down, ReadDense(layer, SiteKind::kMlpOutput));
    SiteMoments moments;
    for (const Batch& batch : batches_) {
      const float* activation = Activation(batch, norm, dense_, dense_gate_up);
      update_.resize(static_cast<size_t>(batch.num_tokens * hidden_size_));
      dense_down.Apply(activation, batch.num_tokens, update_.data(), pool_);
      AddInPlace(update_, batch.num_tokens * hidden_size_, Rows(dense_, batch));
      AddResidualMoments(dense_down, batch,
                         Activation(batch, compressed_norm, compressed_, compressed_gate_up),
                         moments);
    }
    CompleteSymmetric(config_.intermediate_size, moments.input.data());
    CompressedSiteProduct compressed_down = FitSite(dense_down, moments);
    for (const Batch& batch : batches_) {
      const float* activation = Activation(batch, compressed_norm, compressed_, compressed_gate_up);
      update_.resize(static_cast<size_t>(batch.num_tokens * hidden_size_));
      compressed_down.Apply(activation, batch.num_tokens, update_.data(), pool_);
      AddInPlace(update_, batch.num_tokens * hidden_size_, Rows(compressed_, batch));
    }
    fit_.sites.back().relative_residual_error = RelativeResidualError();
    return absl::OkStatus();
  }

  double RelativeResidualError() const {
    double error = 0;
    double energy = 0;
    for (size_t i = 0; i < dense_.size(); ++i) {
      const double difference = static_cast<double>(compressed_[i]) - dense_[i];
      error += difference * difference;
      energy += static_cast<double>(dense_[i]) * dense_[i];
    }
    return energy > 0 ? error / energy : std::numeric_limits<double>::quiet_NaN();
  }

  // The input of the mlp_output site, from a residual stream before the MLP.
  template <typename GateUp>
  const float* Activation(const Batch& batch, absl::Span<const float> norm,
                          const std::vector<float>& hidden, GateUp& gate_up) {
    const int64_t width = config_.intermediate_size;
    gate_up_.resize(static_cast<size_t>(batch.num_tokens * 2 * width));
    activation_.resize(static_cast<size_t>(batch.num_tokens * width));
    gate_up.Apply(Normed(hidden, batch, norm, dense_x_), batch.num_tokens, gate_up_.data(), pool_);
    GateRows(gate_up_.data(), width, batch.num_tokens, activation_.data(), pool_);
    return activation_.data();
  }

  // The weight of the norm that the site fitted last reads, multiplied by the factors that suit the
  // compressed site best; the result as it is stored.
  absl::StatusOr<std::vector<float>> RefitNorm(const std::string& name,
                                               const std::vector<float>& norm,
                                               const SiteMoments& moments) {
    const std::vector<double> factors =
        FitChannelFactors(*fit_.sites.back().encoded, moments, pool_);
    std::vector<float> refitted(norm.size());
    for (size_t i = 0; i < norm.size(); ++i) {
      refitted[i] = static_cast<float>(norm[i] * factors[i]);
    }
    return ReplaceNorm(name, refitted);
  }

  // Has a norm's weight stored as `values` in the checkpoint's type; returns them as rounded to it.
  absl::StatusOr<std::vector<float>> ReplaceNorm(const std::string& name,
                                                 const std::vector<float>& values) {
    US_ASSIGN_OR_RETURN(const TensorView view, GetTensor(checkpoint_, name, {}, {hidden_size_}));
    ReplacedTensor replaced = {name, view.dtype, view.shape, {}};
    replaced.bytes.resize(static_cast<size_t>(view.num_bytes()));
    const auto element_bytes = static_cast<size_t>(ElementBytes(view.dtype));
    for (size_t i = 0; i < values.size(); ++i) {
      StoreFloat(values[i], view.dtype, replaced.bytes.data() + i * element_bytes);
    }
    std::vector<float> rounded = ToFloatVector({view.dtype, view.shape, replaced.bytes.data()});
    fit_.replaced.push_back(std::move(replaced));
    return rounded;
  }

  // The last norm's weights, by least squares for each channel and then all scaled so that the
  // logits are as sure as they should be. This costs no bits.
  absl::Status RefitLastNorm() {
    const std::string name = "model.norm.weight";
    US_ASSIGN_OR_RETURN(std::vector<float> norm, ReadVector(checkpoint_, name, hidden_size_));
    const std::string head_name =
        config_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
    US_ASSIGN_OR_RETURN(const TensorView head,
                        GetTensor(checkpoint_, head_name, {}, {config_.vocab_size, hidden_size_}));

    std::vector<double> cross(norm.size(), 0.0);
    std::vector<double> energy(norm.size(), 0.0);
    // Tokens for the second step, spread over the text.
    const int64_t stride = std::max<int64_t>(1, num_tokens_ / kLogitTokens);
    std::vector<float> dense_sample;
    std::vector<float> compressed_sample;
    for (const Batch& batch : batches_) {
      const float* dense_x = Normed(dense_, batch, norm, dense_x_);
      const float* compressed_x = Normed(compressed_, batch, norm, compressed_x_);
      for (int64_t token = 0; token < batch.num_tokens; ++token) {
        const float* dense_row = dense_x + token * hidden_size_;
        const float* compressed_row = compressed_x + token * hidden_size_;
        for (size_t i = 0; i < norm.size(); ++i) {
          cross[i] += static_cast<double>(dense_row[i]) * compressed_row[i];
          energy[i] += static_cast<double>(compressed_row[i]) * compressed_row[i];
        }
        if ((batch.first_token + token) % stride == 0) {
          dense_sample.insert(dense_sample.end(), dense_row, dense_row + hidden_size_);
          compressed_sample.insert(compressed_sample.end(), compressed_row,
                                   compressed_row + hidden_size_);
        }
      }
    }
    std::vector<float> factors(norm.size(), 1.0f);
    for (size_t i = 0; i < norm.size(); ++i) {
      if (energy[i] > 0) factors[i] = static_cast<float>(std::max(0.0, cross[i] / energy[i]));
    }
    for (size_t i = 0; i < compressed_sample.size(); ++i) {
      compressed_sample[i] *= factors[i % norm.size()];
    }
    const double scale =
        BestLogitScale(head, dense_sample.data(), compressed_sample.data(),
                       static_cast<int64_t>(dense_sample.size()) / hidden_size_, pool_);

    for (size_t i = 0; i < norm.size(); ++i) {
      norm[i] = static_cast<float>(norm[i] * factors[i] * scale);
    }
    return ReplaceNorm(name, norm).status();
  }

  static void StoreFloat(float value, DType dtype, uint8_t* out) {
    const auto store = [out](auto stored) { std::memcpy(out, &stored, sizeof(stored)); };
    switch (dtype) {
      case DType::kF16:
        return store(FloatToHalf(value));
      case DType::kBF16:
        return store(FloatToBf16(value));
      case DType::kF32:
        return store(value);
      case DType::kF64:
        return store(static_cast<double>(value));
      default:
        US_CHECK(false && "not a floating type");
    }
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const absl::Span<const LinearSite> sites_;
  const SiteEncoder& encoder_;
  const CalibrationText& text_;
  const LayerFitOptions& options_;
  ThreadPool& pool_;
  const std::vector<Batch> batches_;
  const int64_t num_tokens_;
  const int64_t hidden_size_;
  const std::vector<float> inverse_frequencies_;

  LayerFit fit_;

  // The residual streams [num_tokens, hidden_size].
  std::vector<float> dense_;
  std::vector<float> compressed_;

  // Scratch of one batch.
  std::vector<float> dense_x_;
  std::vector<float> compressed_x_;
  std::vector<float> qkv_;
  std::vector<float> attention_;
  std::vector<float> gate_up_;
  std::vector<float> activation_;
  std::vector<float> update_;
  std::vector<float> target_;
};

}  // namespace

absl::StatusOr<LayerFit> FitLayers(const Checkpoint& checkpoint, absl::Span<const LinearSite> sites,
                                   const SiteEncoder& encoder, const CalibrationText& text,
                                   const LayerFitOptions& options, ThreadPool& pool) {
  return LayerFitter(checkpoint, sites, encoder, text, options, pool).Run();
}

}  // namespace ultrasketch
