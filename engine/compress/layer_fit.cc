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
#include "engine/compress/calibration_layer.h"
#include "engine/compress/decoder_math.h"
#include "engine/compress/dense_site.h"
#include "engine/compress/logit_scale.h"
#include "engine/compress/norm_refit.h"
#include "engine/compress/products.h"
#include "engine/compress/site_moments.h"
#include "engine/models/layer_table.h"

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
        inputs_(config_, pool) {}

  absl::StatusOr<LayerFit> Run() {
    US_RETURN_IF_ERROR(Embed());
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      finished_ = layer < options_.num_finished_layers;
      fit_.layers.emplace_back();
      if (finished_) {
        US_ASSIGN_OR_RETURN(fit_.layers.back(), options_.finished_layer(layer));
        US_CHECK(fit_.layers.back().sites.size() == kNumSiteKinds &&
                 fit_.layers.back().norms.size() == 2);
      }
      US_ASSIGN_OR_RETURN(vectors_, ReadLayerVectors(checkpoint_, layer));
      for (size_t row = 0; row < kLayerTable.size(); row += 2) {
        US_RETURN_IF_ERROR(FitRows(layer, kLayerTable[row], kLayerTable[row + 1]));
      }
      if (!finished_ && options_.on_layer) {
        US_RETURN_IF_ERROR(options_.on_layer(layer, fit_.layers.back()));
      }
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
    if (options_.embedding == nullptr) return absl::OkStatus();
    out = compressed_.data();
    for (const auto& window : text_.windows) {
      for (const int32_t id : window) {
        options_.embedding->DecodeRows(id, 1, out);
        out += hidden_size_;
      }
    }
    return absl::OkStatus();
  }

  // Reads the dense form of a site of the current layer.
  absl::StatusOr<DenseSite> StartSite(int layer, SiteKind kind) {
    const size_t index = SiteIndex(layer, kind);
    if (options_.on_site) US_RETURN_IF_ERROR(options_.on_site(index));
    US_CHECK(sites_[index].layer == layer && sites_[index].kind == kind);
    return DenseSite::Read(sites_[index], checkpoint_, pool_);
  }

  static size_t SiteIndex(int layer, SiteKind kind) {
    return static_cast<size_t>(layer) * kNumSiteKinds + static_cast<size_t>(kind);
  }

  // Fits a site of the current layer.
  void FitSite(const DenseSite& dense, const SiteMoments& moments) {
    FittedSite fitted;
    fitted.encoded = encoder_.Encode(SiteIndex(dense.site().layer, dense.site().kind),
                                     dense.weights(), moments, pool_);
    fitted.relative_output_error = RelativeOutputError(*fitted.encoded, moments, pool_);
    fitted.relative_weight_error = RelativeWeightError(*fitted.encoded, dense.weights(), pool_);
    fit_.layers.back().sites.push_back(std::move(fitted));
  }

  CompressedSiteProduct Product(const DenseSite& dense) {
    const auto kind = static_cast<size_t>(dense.site().kind);
    return CompressedSiteProduct(*fit_.layers.back().sites[kind].encoded, dense.bias());
  }

  // Fits a site that reads a norm of the residual streams, and the weight of that norm.
  absl::Status FitNormedSite(const DenseSite& dense, LayerVector which) {
    const std::vector<float>& norm = vectors_[static_cast<size_t>(which)];
    const SiteMoments moments = NormedMoments(dense, norm);
    FitSite(dense, moments);
    const std::vector<double> factors =
        FitChannelFactors(*fit_.layers.back().sites.back().encoded, moments, pool_);
    US_ASSIGN_OR_RETURN(ReplacedTensor replaced,
                        ReplacedNorm(LayerVectorName(dense.site().layer, which), norm, factors));
    fit_.layers.back().norms.push_back(std::move(replaced));
    return absl::OkStatus();
  }

  // The current layer's vectors as they are stored, up to the last norm that has been fitted.
  LayerVectorValues StoredVectors(int layer) const {
    LayerVectorValues stored = vectors_;
    for (const ReplacedTensor& norm : fit_.layers.back().norms) {
      for (const LayerVector vector : LayerVectors(config_)) {
        if (LayerVectorName(layer, vector) != norm.name) continue;
        stored[static_cast<size_t>(vector)] =
            ToFloatVector({norm.dtype, norm.shape, norm.bytes.data()});
      }
    }
    return stored;
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

  void FitResidualSite(const DenseSite& dense, SiteMoments& moments) {
    CompleteSymmetric(dense.site().cols, moments.input.data());
    FitSite(dense, moments);
    moments = {};
  }

  // Fits two rows of the layer's table: a site that reads a norm of the residual streams, and the
  // one that reads what it wrote, and adds to them.
  absl::Status FitRows(int layer, const LayerRow& in_row, const LayerRow& out_row) {
    US_CHECK(in_row.reads == SiteReads::kNormalized && out_row.writes == SiteWrites::kResidual);
    US_ASSIGN_OR_RETURN(const DenseSite dense_in, StartSite(layer, in_row.site));
    if (!finished_) US_RETURN_IF_ERROR(FitNormedSite(dense_in, in_row.norm));
    CompressedSiteProduct compressed_in = Product(dense_in);
    const LayerVectorValues compressed_vectors = StoredVectors(layer);

    US_ASSIGN_OR_RETURN(const DenseSite dense_out, StartSite(layer, out_row.site));
    const int64_t cols = dense_out.site().cols;
    // A batch of what the second site reads, in either stream before the rows.
    const auto make_x = [&](auto& in, const LayerVectorValues& vectors, const Batch& batch,
                            std::vector<float>& hidden, float* x) {
      dense_x_.resize(static_cast<size_t>(batch.num_tokens * hidden_size_));
      inputs_.Make(in_row, layer, vectors, batch.window_tokens, Rows(hidden, batch),
                   dense_x_.data());
      between_.resize(static_cast<size_t>(batch.num_tokens * dense_in.site().rows));
      in.Apply(dense_x_.data(), batch.num_tokens, between_.data(), pool_);
      inputs_.Make(out_row, layer, vectors, batch.window_tokens, between_.data(), x);
    };
    const auto add = [&](auto& out, const float* x, const Batch& batch,
                         std::vector<float>& hidden) {
      update_.resize(static_cast<size_t>(batch.num_tokens * hidden_size_));
      out.Apply(x, batch.num_tokens, update_.data(), pool_);
      AddInPlace(update_, batch.num_tokens * hidden_size_, Rows(hidden, batch));
    };

    SiteMoments moments;
    // Attention takes longer to compute again than an MLP, and less memory to keep.
    const bool keeps_x = out_row.reads == SiteReads::kAttended;
    std::vector<float> kept(static_cast<size_t>(keeps_x ? num_tokens_ * cols : 0));
    for (const Batch& batch : batches_) {
      x_.resize(static_cast<size_t>(batch.num_tokens * cols));
      // The dense stream moves on.
      make_x(dense_in, vectors_, batch, dense_, x_.data());
      add(dense_out, x_.data(), batch, dense_);
      if (finished_ && !keeps_x) continue;
      float* const x = keeps_x ? kept.data() + batch.first_token * cols : x_.data();
      make_x(compressed_in, compressed_vectors, batch, compressed_, x);
      if (!finished_) AddResidualMoments(dense_out, batch, x, moments);
    }
    if (!finished_) FitResidualSite(dense_out, moments);
    CompressedSiteProduct compressed_out = Product(dense_out);
    for (const Batch& batch : batches_) {
      x_.resize(static_cast<size_t>(batch.num_tokens * cols));
      float* const x = keeps_x ? kept.data() + batch.first_token * cols : x_.data();
      if (!keeps_x) make_x(compressed_in, compressed_vectors, batch, compressed_, x);
      add(compressed_out, x, batch, compressed_);
    }
    return SetResidualError(dense_out.site());
  }

  absl::Status SetResidualError(const LinearSite& site) {
    double error = 0;
    double energy = 0;
    for (size_t i = 0; i < dense_.size(); ++i) {
      const double difference = static_cast<double>(compressed_[i]) - dense_[i];
      error += difference * difference;
      energy += static_cast<double>(dense_[i]) * dense_[i];
    }
    if (!std::isfinite(energy) || !std::isfinite(error)) {
      return absl::InvalidArgumentError(
          absl::StrCat(site.name, ": on the calibration text the ",
                       std::isfinite(energy) ? "compressed" : "dense",
                       " model's residual stream after this site is not finite"));
    }
    fit_.layers.back().sites[static_cast<size_t>(site.kind)].relative_residual_error =
        energy > 0 ? error / energy : std::numeric_limits<double>::quiet_NaN();
    return absl::OkStatus();
  }

  // A norm's weight times `factors`, in the checkpoint's type.
  absl::StatusOr<ReplacedTensor> ReplacedNorm(const std::string& name, absl::Span<const float> norm,
                                              const std::vector<double>& factors) {
    US_ASSIGN_OR_RETURN(const TensorView view, GetTensor(checkpoint_, name, {}, {hidden_size_}));
    ReplacedTensor replaced = {name, view.dtype, view.shape, {}};
    replaced.bytes.resize(static_cast<size_t>(view.num_bytes()));
    const auto element_bytes = static_cast<size_t>(ElementBytes(view.dtype));
    for (size_t i = 0; i < norm.size(); ++i) {
      StoreFloat(static_cast<float>(norm[i] * factors[i]), view.dtype,
                 replaced.bytes.data() + i * element_bytes);
    }
    return replaced;
  }

  // The last norm's weights, by least squares for each channel and then all scaled so that the
  // logits are as sure as they should be. This costs no bits.
  absl::Status RefitLastNorm() {
    const std::string name = kFinalNormName;
    US_ASSIGN_OR_RETURN(const std::vector<float> norm, ReadVector(checkpoint_, name, hidden_size_));
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
    std::vector<double> factors(norm.size(), 1.0);
    for (size_t i = 0; i < norm.size(); ++i) {
      if (energy[i] > 0) factors[i] = std::max(0.0, cross[i] / energy[i]);
    }
    for (size_t i = 0; i < compressed_sample.size(); ++i) {
      compressed_sample[i] *= static_cast<float>(factors[i % norm.size()]);
    }
    const double scale =
        BestLogitScale(head, dense_sample.data(), compressed_sample.data(),
                       static_cast<int64_t>(dense_sample.size()) / hidden_size_, pool_);

    for (double& factor : factors) factor *= scale;
    US_ASSIGN_OR_RETURN(fit_.last_norm, ReplacedNorm(name, norm, factors));
    return absl::OkStatus();
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
  const SiteInputs inputs_;

  LayerFit fit_;
  // Of the current layer.
  LayerVectorValues vectors_;  // as the dense model has them
  bool finished_ = false;      // it only moves the streams on

  // The residual streams [num_tokens, hidden_size].
  std::vector<float> dense_;
  std::vector<float> compressed_;

  // Scratch of one batch.
  std::vector<float> dense_x_;
  std::vector<float> compressed_x_;
  std::vector<float> between_;
  std::vector<float> x_;
  std::vector<float> update_;
  std::vector<float> target_;
};

}  // namespace

int64_t LayerFitBatchTokens(int64_t window_tokens) { return std::max(kBatchTokens, window_tokens); }

absl::StatusOr<LayerFit> FitLayers(const Checkpoint& checkpoint, absl::Span<const LinearSite> sites,
                                   const SiteEncoder& encoder, const CalibrationText& text,
                                   const LayerFitOptions& options, ThreadPool& pool) {
  return LayerFitter(checkpoint, sites, encoder, text, options, pool).Run();
}

}  // namespace ultrasketch
