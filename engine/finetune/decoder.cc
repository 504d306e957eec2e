#include "engine/finetune/decoder.h"

#include <array>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include <ATen/ATen.h>

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/codecs/codec.h"
#include "engine/models/checkpoint_codec.h"
#include "engine/models/layer_table.h"
#include "engine/models/vocabulary_tables.h"

namespace ultrasketch {

at::Tensor Decoder::Attend(int layer, const at::Tensor& qkv, const RotaryTables& rotary,
                           int64_t num_windows) const {
  const AttentionExtents extents = {.num_windows = num_windows,
                                    .window_tokens = qkv.size(0) / num_windows,
                                    .num_heads = config_.num_attention_heads,
                                    .num_kv_heads = config_.num_kv_heads,
                                    .head_dim = config_.head_dim};
  at::Tensor prepared = qkv;
  if (config_.head_norms) {
    prepared = NormalizeHeads(qkv, Vector(layer, LayerVector::kQueryNorm),
                              Vector(layer, LayerVector::kKeyNorm), config_.rms_norm_eps, extents);
  }
  if (config_.has_rope(layer)) return CausalAttention(prepared, rotary, extents);
  return CausalAttention(prepared, {at::ones_like(rotary.cosine), at::zeros_like(rotary.sine)},
                         extents);
}

at::Tensor Decoder::RunLayer(int layer, const at::Tensor& hidden, const RotaryTables& rotary,
                             int64_t num_windows) const {
  at::Tensor residual = hidden;
  at::Tensor y;
  for (const LayerRow& row : kLayerTable) {
    at::Tensor x;
    switch (row.reads) {
      case SiteReads::kNormalized:
        x = RmsNorm(residual, Vector(layer, row.norm), config_.rms_norm_eps);
        break;
      case SiteReads::kAttended:
        x = Attend(layer, y, rotary, num_windows);
        break;
      case SiteReads::kGated:
        x = SwiGlu(y);
        break;
    }
    y = ApplySite(layer, row.site, x);
    if (row.writes == SiteWrites::kResidual) residual = residual + y;
  }
  return residual;
}

at::Tensor Decoder::RunFinalNorm(const at::Tensor& hidden) const {
  return RmsNorm(hidden, FinalNorm(), config_.rms_norm_eps);
}

RotaryTables Decoder::MakeRotaryTables(int64_t window_tokens) const {
  std::vector<float> frequencies = RopeInverseFrequencies(config_);
  const at::Tensor angles = at::arange(window_tokens, at::kDouble).unsqueeze(1) *
                            at::tensor(frequencies).to(at::kDouble).unsqueeze(0);
  const auto place = [this](const at::Tensor& table) {
    return table.unsqueeze(1).to(options_.device, options_.type);
  };
  return {place(angles.cos()), place(angles.sin())};
}

at::Tensor Decoder::Run(const Tables& tables, const at::Tensor& ids,
                        const RotaryTables& rotary) const {
  at::Tensor hidden = tables.embedding.index_select(0, ids.reshape({-1}));
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    hidden = RunLayer(layer, hidden, rotary, ids.size(0));
  }
  return RunFinalNorm(hidden);
}

absl::StatusOr<at::Tensor> ReadFloatVector(const Checkpoint& checkpoint, const std::string& name,
                                           int64_t size) {
  US_ASSIGN_OR_RETURN(const TensorView view, GetTensor(checkpoint, name, {}, {size}));
  US_RETURN_IF_ERROR(CheckFinite(checkpoint, name, view));
  return at::tensor(ToFloatVector(view));
}

at::Tensor DecodeAll(const EncodedLinear& encoded) {
  const LinearSite& site = encoded.site();
  at::Tensor weights = at::empty({site.rows, site.cols}, at::kFloat);
  encoded.DecodeRows(0, site.rows, weights.data_ptr<float>());
  return weights;
}

absl::StatusOr<at::Tensor> ReadDenseSite(const LinearSite& site, const Checkpoint& checkpoint) {
  const Codec* const dense = FindCodec("dense");
  US_CHECK(dense != nullptr);
  US_ASSIGN_OR_RETURN(const std::unique_ptr<EncodedLinear> encoded,
                      dense->Load(site, checkpoint, nlohmann::json()));
  return DecodeAll(*encoded);
}

namespace {

class Teacher final : public Decoder {
 public:
  using Decoder::Decoder;

  absl::Status Load(const Checkpoint& checkpoint) {
    const auto place = [this](const at::Tensor& tensor) {
      return tensor.to(options().device, options().type);
    };
    for (const LinearSite& site : LinearSites(config())) {
      US_ASSIGN_OR_RETURN(const at::Tensor weight, ReadDenseSite(site, checkpoint));
      US_ASSIGN_OR_RETURN(const std::vector<float> bias, LoadBias(site, checkpoint));
      sites_.push_back({place(weight).t(), bias.empty() ? at::Tensor() : place(at::tensor(bias))});
    }
    for (int layer = 0; layer < config().num_layers; ++layer) {
      for (const LayerVector vector : LayerVectors(config())) {
        US_ASSIGN_OR_RETURN(const at::Tensor values,
                            ReadFloatVector(checkpoint, LayerVectorName(layer, vector),
                                            LayerVectorSize(config(), vector)));
        vectors_.push_back(values.to(options().device));
      }
    }
    US_ASSIGN_OR_RETURN(final_norm_,
                        ReadFloatVector(checkpoint, kFinalNormName, config().hidden_size));
    final_norm_ = final_norm_.to(options().device);
    US_ASSIGN_OR_RETURN(const VocabularyTables stored, LoadVocabularyTables(checkpoint));
    tables_.embedding = place(DecodeAll(*stored.embedding));
    tables_.head = stored.head == nullptr ? tables_.embedding : place(DecodeAll(*stored.head));
    return absl::OkStatus();
  }

  Tables CurrentTables() const override { return tables_; }

 protected:
  at::Tensor ApplySite(int layer, SiteKind kind, const at::Tensor& x) const override {
    const Site& site = sites_[static_cast<size_t>(layer * kNumSiteKinds + static_cast<int>(kind))];
    return site.bias.defined() ? at::addmm(site.bias, x, site.weight) : x.mm(site.weight);
  }
  const at::Tensor& Vector(int layer, LayerVector which) const override {
    return vectors_[LayerVectorIndex(config(), layer, which)];
  }
  const at::Tensor& FinalNorm() const override { return final_norm_; }

 private:
  struct Site {
    at::Tensor weight;  // [cols, rows], a view
    at::Tensor bias;    // [rows], or undefined
  };
  std::vector<Site> sites_;
  std::vector<at::Tensor> vectors_;  // see LayerVectorIndex
  at::Tensor final_norm_;
  Tables tables_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Decoder>> LoadTeacher(const Checkpoint& checkpoint,
                                                     const ComputeOptions& options) {
  US_ASSIGN_OR_RETURN(const std::string codec, CheckpointCodec(checkpoint));
  if (codec != "dense") {
    return absl::InvalidArgumentError(absl::StrCat(
        checkpoint.folder(), ": the teacher is compressed (", codec, "); expected a dense model"));
  }
  auto teacher = std::make_unique<Teacher>(checkpoint.config(), options);
  US_RETURN_IF_ERROR(teacher->Load(checkpoint));
  return teacher;
}

}  // namespace ultrasketch
