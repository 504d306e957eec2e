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
#include "engine/compress/dense_site.h"
#include "engine/compress/logit_scale.h"
#include "engine/compress/site_moments.h"
#include "engine/models/layer_table.h"

namespace ultrasketch {
namespace {

// Tokens whose logits decide how sure the compressed model should be.
constexpr int64_t kLogitTokens = 4096;

// Whole windows, consecutive in the text.
struct Batch {
  size_t first_window = 0;
  int64_t first_token = 0;
  int64_t num_tokens = 0;
  std::vector<int64_t> window_tokens;
};

// Of up to `batch_tokens`, or one window.
std::vector<Batch> MakeBatches(const CalibrationText& text, int64_t batch_tokens) {
  std::vector<Batch> batches;
  int64_t first_token = 0;
  for (size_t index = 0; index < text.windows.size(); ++index) {
    const auto count = static_cast<int64_t>(text.windows[index].size());
    if (batches.empty() || batches.back().num_tokens + count > batch_tokens) {
      batches.push_back({index, first_token, 0, {}});
    }
    batches.back().num_tokens += count;
    batches.back().window_tokens.push_back(count);
    first_token += count;
  }
  return batches;
}

class LayerFitter {
 public:
  LayerFitter(const Checkpoint& checkpoint, absl::Span<const LinearSite> sites,
              const SiteEncoder& encoder, const CalibrationText& text,
              const LayerFitOptions& options, FitDevice& device, ThreadPool& pool)
      : checkpoint_(checkpoint),
        config_(checkpoint.config()),
        sites_(sites),
        encoder_(encoder),
        text_(text),
        options_(options),
        device_(device),
        pool_(pool),
        batches_(MakeBatches(text, device.batch_tokens())),
        num_tokens_(text.num_tokens()),
        hidden_size_(config_.hidden_size) {}

  absl::StatusOr<LayerFit> Run() {
    US_ASSIGN_OR_RETURN(const SiteInputs inputs, SiteInputs::Make(config_, device_));
    inputs_ = &inputs;
    US_RETURN_IF_ERROR(AllocateScratch());
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
      US_ASSIGN_OR_RETURN(vector_arrays_, LoadLayerVectors(vectors_, device_));
      for (size_t row = 0; row < kLayerTable.size(); row += 2) {
        US_RETURN_IF_ERROR(FitRows(layer, kLayerTable[row], kLayerTable[row + 1]));
      }
      if (!finished_ && options_.on_layer) {
        US_RETURN_IF_ERROR(options_.on_layer(layer, fit_.layers.back()));
      }
    }
    for (auto* scratch : {&between_, &x_, &kept_}) scratch->reset();
    US_RETURN_IF_ERROR(RefitLastNorm());
    return std::move(fit_);
  }

 private:
  absl::Status AllocateScratch() {
    int64_t batch_tokens = 0;
    for (const Batch& batch : batches_) batch_tokens = std::max(batch_tokens, batch.num_tokens);
    // What the sites in between put out and read, and attention's outputs of the whole text.
    int64_t most_rows = 0;
    int64_t most_cols = 0;
    int64_t kept_cols = 0;
    for (const LayerRow& row : kLayerTable) {
      const LinearSite& site = sites_[static_cast<size_t>(row.site)];
      if (row.writes != SiteWrites::kResidual) {
        most_rows = std::max(most_rows, site.rows);
      } else if (KeepsInput(row)) {
        kept_cols = site.cols;
      }
      if (row.writes == SiteWrites::kResidual) most_cols = std::max(most_cols, site.cols);
    }
    const auto allocate = [&](int64_t size, std::unique_ptr<FitArray>& array) -> absl::Status {
      US_ASSIGN_OR_RETURN(array, device_.Allocate(size));
      return absl::OkStatus();
    };
    US_RETURN_IF_ERROR(allocate(num_tokens_ * hidden_size_, dense_));
    US_RETURN_IF_ERROR(allocate(num_tokens_ * hidden_size_, compressed_));
    US_RETURN_IF_ERROR(allocate(num_tokens_ * kept_cols, kept_));
    US_RETURN_IF_ERROR(allocate(batch_tokens * hidden_size_, dense_x_));
    US_RETURN_IF_ERROR(allocate(batch_tokens * hidden_size_, compressed_x_));
    US_RETURN_IF_ERROR(allocate(batch_tokens * most_rows, between_));
    return allocate(batch_tokens * most_cols, x_);
  }

  // Attention takes longer to compute again than an MLP, and less memory to keep.
  static bool KeepsInput(const LayerRow& row) { return row.reads == SiteReads::kAttended; }

  absl::Status Embed() {
    const std::string name = "model.embed_tokens.weight";
    US_ASSIGN_OR_RETURN(const TensorView table,
                        GetTensor(checkpoint_, name, {}, {config_.vocab_size, hidden_size_}));
    std::vector<float> rows;
    for (const Batch& batch : batches_) {
      rows.resize(static_cast<size_t>(batch.num_tokens * hidden_size_));
      const auto fill = [&](auto copy_row) {
        float* out = rows.data();
        for (size_t i = 0; i < batch.window_tokens.size(); ++i) {
          for (const int32_t id : text_.windows[batch.first_window + i]) {
            US_CHECK(id >= 0 && id < config_.vocab_size);
            copy_row(id, out);
            out += hidden_size_;
          }
        }
      };
      fill([&](int32_t id, float* out) {
        CopyToFloat(table, id * hidden_size_, hidden_size_, out);
      });
      for (const float value : rows) {
        if (!std::isfinite(value)) return CheckFinite(checkpoint_, name, table);
      }
      US_RETURN_IF_ERROR(device_.Upload(rows, Rows(*dense_, batch)));
      if (options_.embedding != nullptr) {
        fill([&](int32_t id, float* out) { options_.embedding->DecodeRows(id, 1, out); });
      }
      US_RETURN_IF_ERROR(device_.Upload(rows, Rows(*compressed_, batch)));
    }
    return absl::OkStatus();
  }

  // A site of the current layer as the dense model has it.
  struct Dense {
    std::unique_ptr<DenseSite> values;
    std::unique_ptr<FitProduct> product;
    const LinearSite& site() const { return values->site(); }
  };

  absl::StatusOr<Dense> StartSite(int layer, SiteKind kind) {
    const size_t index = SiteIndex(layer, kind);
    if (options_.on_site) US_RETURN_IF_ERROR(options_.on_site(index));
    US_CHECK(sites_[index].layer == layer && sites_[index].kind == kind);
    US_ASSIGN_OR_RETURN(DenseSite values, DenseSite::Read(sites_[index], checkpoint_));
    Dense dense;
    dense.values = std::make_unique<DenseSite>(std::move(values));
    US_ASSIGN_OR_RETURN(dense.product, device_.LoadDense(dense.site(), dense.values->weights(),
                                                         dense.values->bias()));
    return dense;
  }

  static size_t SiteIndex(int layer, SiteKind kind) {
    return static_cast<size_t>(layer) * kNumSiteKinds + static_cast<size_t>(kind);
  }

  // The encoded form of a site of the current layer, which has been fitted.
  absl::StatusOr<std::unique_ptr<FitProduct>> LoadFitted(const Dense& dense) {
    const auto kind = static_cast<size_t>(dense.site().kind);
    return device_.LoadEncoded(*fit_.layers.back().sites[kind].encoded, dense.values->bias());
  }

  // Fits a site of the current layer. Returns its product.
  absl::StatusOr<std::unique_ptr<FitProduct>> FitSite(const Dense& dense, FitMoments& moments) {
    FittedSite fitted;
    US_ASSIGN_OR_RETURN(fitted.encoded,
                        encoder_.Encode(SiteIndex(dense.site().layer, dense.site().kind),
                                        dense.values->weights(), moments, pool_));
    fitted.relative_weight_error =
        RelativeWeightError(*fitted.encoded, dense.values->weights(), pool_);
    fit_.layers.back().sites.push_back(std::move(fitted));
    US_ASSIGN_OR_RETURN(std::unique_ptr<FitProduct> product, LoadFitted(dense));
    US_ASSIGN_OR_RETURN(fit_.layers.back().sites.back().relative_output_error,
                        moments.OutputError(*product));
    return product;
  }

  // Fits a site that reads a norm of the residual streams, and the weight of that norm.
  absl::StatusOr<std::unique_ptr<FitProduct>> FitNormedSite(const Dense& dense, LayerVector which) {
    const FitArray& norm = *vector_arrays_[static_cast<size_t>(which)];
    US_ASSIGN_OR_RETURN(const auto moments, device_.MakeMoments(dense.site(), *dense.product));
    for (const Batch& batch : batches_) {
      const float* const dense_x = Normed(*dense_, batch, norm, *dense_x_);
      const float* const compressed_x = Normed(*compressed_, batch, norm, *compressed_x_);
      US_RETURN_IF_ERROR(moments->AddInputs(dense_x, compressed_x, batch.num_tokens));
    }
    US_RETURN_IF_ERROR(moments->Complete());
    US_ASSIGN_OR_RETURN(std::unique_ptr<FitProduct> product, FitSite(dense, *moments));
    US_ASSIGN_OR_RETURN(const std::vector<double> factors, moments->ChannelFactors(*product));
    US_ASSIGN_OR_RETURN(ReplacedTensor replaced,
                        ReplacedNorm(LayerVectorName(dense.site().layer, which),
                                     vectors_[static_cast<size_t>(which)], factors));
    fit_.layers.back().norms.push_back(std::move(replaced));
    return product;
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

  const float* Normed(const FitArray& hidden, const Batch& batch, const FitArray& norm,
                      const FitArray& out) {
    device_.Normalize(Rows(hidden, batch), norm, config_.rms_norm_eps, batch.num_tokens,
                      out.data());
    return out.data();
  }

  float* Rows(const FitArray& matrix, const Batch& batch) const {
    return matrix.data() + batch.first_token * hidden_size_;
  }

  // Fits two rows of the layer's table: a site that reads a norm of the residual streams, and the
  // one that reads what it wrote, and adds to them.
  absl::Status FitRows(int layer, const LayerRow& in_row, const LayerRow& out_row) {
    US_CHECK(in_row.reads == SiteReads::kNormalized && out_row.writes == SiteWrites::kResidual);
    US_ASSIGN_OR_RETURN(const Dense dense_in, StartSite(layer, in_row.site));
    std::unique_ptr<FitProduct> compressed_in;
    if (finished_) {
      US_ASSIGN_OR_RETURN(compressed_in, LoadFitted(dense_in));
    } else {
      US_ASSIGN_OR_RETURN(compressed_in, FitNormedSite(dense_in, in_row.norm));
    }
    US_ASSIGN_OR_RETURN(const LayerVectorArrays compressed_vectors,
                        LoadLayerVectors(StoredVectors(layer), device_));

    US_ASSIGN_OR_RETURN(const Dense dense_out, StartSite(layer, out_row.site));
    const int64_t cols = dense_out.site().cols;
    // A batch of what the second site reads, in either stream before the rows.
    const auto make_x = [&](FitProduct& in, const LayerVectorArrays& vectors, const Batch& batch,
                            const FitArray& hidden, float* x) {
      inputs_->Make(in_row, layer, vectors, batch.window_tokens, Rows(hidden, batch),
                    dense_x_->data());
      in.Apply(dense_x_->data(), batch.num_tokens, between_->data());
      inputs_->Make(out_row, layer, vectors, batch.window_tokens, between_->data(), x);
    };
    const auto add = [&](FitProduct& out, const float* x, const Batch& batch,
                         const FitArray& hidden) {
      float* const update = compressed_x_->data();
      out.Apply(x, batch.num_tokens, update);
      device_.Add(update, batch.num_tokens * hidden_size_, Rows(hidden, batch));
    };

    std::unique_ptr<FitMoments> moments;
    if (!finished_) {
      US_ASSIGN_OR_RETURN(moments, device_.MakeMoments(dense_out.site(), *dense_out.product));
    }
    const bool keeps_x = KeepsInput(out_row);
    for (const Batch& batch : batches_) {
      // The dense stream moves on.
      make_x(*dense_in.product, vector_arrays_, batch, *dense_, x_->data());
      add(*dense_out.product, x_->data(), batch, *dense_);
      if (finished_ && !keeps_x) continue;
      float* const x = keeps_x ? kept_->data() + batch.first_token * cols : x_->data();
      make_x(*compressed_in, compressed_vectors, batch, *compressed_, x);
      if (finished_) continue;
      US_RETURN_IF_ERROR(moments->AddResiduals(x, Rows(*dense_, batch), Rows(*compressed_, batch),
                                               batch.num_tokens));
    }
    std::unique_ptr<FitProduct> compressed_out;
    if (finished_) {
      US_ASSIGN_OR_RETURN(compressed_out, LoadFitted(dense_out));
    } else {
      US_RETURN_IF_ERROR(moments->Complete());
      US_ASSIGN_OR_RETURN(compressed_out, FitSite(dense_out, *moments));
      moments.reset();
    }
    for (const Batch& batch : batches_) {
      float* const x = keeps_x ? kept_->data() + batch.first_token * cols : x_->data();
      if (!keeps_x) make_x(*compressed_in, compressed_vectors, batch, *compressed_, x);
      add(*compressed_out, x, batch, *compressed_);
    }
    return SetResidualError(dense_out.site());
  }

  absl::Status SetResidualError(const LinearSite& site) {
    US_ASSIGN_OR_RETURN(const SquareSums sums, device_.Compare(compressed_->data(), dense_->data(),
                                                               num_tokens_ * hidden_size_));
    if (!std::isfinite(sums.energy) || !std::isfinite(sums.error)) {
      return absl::InvalidArgumentError(
          absl::StrCat(site.name, ": on the calibration text the ",
                       std::isfinite(sums.energy) ? "compressed" : "dense",
                       " model's residual stream after this site is not finite"));
    }
    fit_.layers.back().sites[static_cast<size_t>(site.kind)].relative_residual_error =
        sums.energy > 0 ? sums.error / sums.energy : std::numeric_limits<double>::quiet_NaN();
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
    std::vector<float> dense_x;
    std::vector<float> compressed_x;
    US_ASSIGN_OR_RETURN(const auto norm_array, LoadArray(norm, device_));
    for (const Batch& batch : batches_) {
      dense_x.resize(static_cast<size_t>(batch.num_tokens * hidden_size_));
      compressed_x.resize(dense_x.size());
      US_RETURN_IF_ERROR(device_.Download(Normed(*dense_, batch, *norm_array, *dense_x_),
                                          absl::MakeSpan(dense_x)));
      US_RETURN_IF_ERROR(device_.Download(Normed(*compressed_, batch, *norm_array, *compressed_x_),
                                          absl::MakeSpan(compressed_x)));
      for (int64_t token = 0; token < batch.num_tokens; ++token) {
        const float* dense_row = dense_x.data() + token * hidden_size_;
        const float* compressed_row = compressed_x.data() + token * hidden_size_;
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
    US_ASSIGN_OR_RETURN(const auto dense_array, LoadArray(dense_sample, device_));
    US_ASSIGN_OR_RETURN(const auto compressed_array, LoadArray(compressed_sample, device_));
    US_ASSIGN_OR_RETURN(
        const double scale,
        BestLogitScale(head, dense_array->data(), compressed_array->data(),
                       static_cast<int64_t>(dense_sample.size()) / hidden_size_, device_));

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
  FitDevice& device_;
  ThreadPool& pool_;
  const std::vector<Batch> batches_;
  const int64_t num_tokens_;
  const int64_t hidden_size_;
  const SiteInputs* inputs_ = nullptr;

  LayerFit fit_;
  // Of the current layer.
  LayerVectorValues vectors_;  // as the dense model has them
  LayerVectorArrays vector_arrays_;
  bool finished_ = false;  // it only moves the streams on

  // The residual streams [num_tokens, hidden_size].
  std::unique_ptr<FitArray> dense_;
  std::unique_ptr<FitArray> compressed_;
  // What a site reads that is not computed again, of all tokens.
  std::unique_ptr<FitArray> kept_;

  // Scratch of one batch.
  std::unique_ptr<FitArray> dense_x_;       // [num_tokens, hidden_size]
  std::unique_ptr<FitArray> compressed_x_;  // [num_tokens, hidden_size]
  std::unique_ptr<FitArray> between_;
  std::unique_ptr<FitArray> x_;
};

}  // namespace

int64_t LayerFitMemory(const ModelConfig& config, int64_t num_tokens, int64_t window_tokens,
                       int64_t batch_tokens) {
  const int64_t qkv_width = config.query_width() + 2 * config.key_width();
  const int64_t streams = num_tokens * (2 * config.hidden_size + config.query_width());
  const int64_t batch =
      std::max(batch_tokens, window_tokens) *
      (2 * config.hidden_size + std::max(2 * config.intermediate_size, qkv_width) +
       std::max(config.intermediate_size, config.query_width()));
  return (streams + batch) * static_cast<int64_t>(sizeof(float));
}

absl::StatusOr<LayerFit> FitLayers(const Checkpoint& checkpoint, absl::Span<const LinearSite> sites,
                                   const SiteEncoder& encoder, const CalibrationText& text,
                                   const LayerFitOptions& options, FitDevice& device,
                                   ThreadPool& pool) {
  return LayerFitter(checkpoint, sites, encoder, text, options, device, pool).Run();
}

}  // namespace ultrasketch
