// A decoder of any of the families that ModelConfig describes.
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/backends/cache_token_bytes.h"
#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/models/decoder_layer.h"
#include "engine/models/model.h"
#include "engine/models/step_layout.h"
#include "engine/models/vocabulary_tables.h"

namespace ultrasketch {
namespace {

constexpr int kMaxBlockSize = 4096;

class DecoderModel final : public Model {
 public:
  DecoderModel(std::shared_ptr<const Checkpoint> checkpoint, std::shared_ptr<Backend> backend,
               const ModelOptions& options)
      : checkpoint_(std::move(checkpoint)),
        backend_(std::move(backend)),
        options_(options),
        shape_(checkpoint_->config()) {}

  absl::Status Load();

  const ModelConfig& config() const override { return checkpoint_->config(); }
  const ModelOptions& options() const override { return options_; }
  const KvCacheLayout& cache_layout() const override { return attention_.layout; }
  MemoryUsage memory_usage() const override;
  bool can_discard_blocks() const override { return backend_->can_discard_blocks(); }
  void DiscardBlocks(absl::Span<const BlockId> blocks) override {
    backend_->DiscardBlocks(attention_.layout, blocks, *attention_.cache);
  }

  absl::Status Forward(absl::Span<const SequenceSlice> sequences) override;
  std::optional<StageDurations> stage_durations() const override {
    return backend_->stage_durations();
  }
  int64_t num_logits() const override { return num_logits_; }
  absl::Status Sample(absl::Span<const SampleRequest> requests,
                      absl::Span<SampledToken> tokens) override;
  absl::Status CopyLogits(int64_t row, absl::Span<float> logits) override;

 private:
  absl::Status LoadTables();
  absl::Status CheckOptions() const;
  absl::Status PlanCache();
  absl::Status AllocateCache();
  absl::Status CheckLogitsRow(int64_t row) const;

  // In the order in which they depend on each other: destroyed from the last.
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::shared_ptr<Backend> backend_;
  ModelOptions options_;
  DecoderShape shape_;
  std::unique_ptr<DeviceEmbedding> embedding_;
  std::unique_ptr<DeviceEmbedding> untied_head_;  // null: the embedding is the head
  std::unique_ptr<DeviceVector> final_norm_;
  std::vector<DecoderLayer> layers_;
  AttentionState attention_;
  LayerBuffers buffers_;
  std::unique_ptr<DeviceBuffer> logits_;  // [max_step_logits, vocab_size]
  StepLayout step_;
  int64_t num_logits_ = 0;
};

absl::Status DecoderModel::LoadTables() {
  US_ASSIGN_OR_RETURN(VocabularyTables tables, LoadVocabularyTables(*checkpoint_));
  US_ASSIGN_OR_RETURN(embedding_, backend_->LoadEmbedding(std::move(tables.embedding)));
  if (tables.head != nullptr) {
    US_ASSIGN_OR_RETURN(untied_head_, backend_->LoadEmbedding(std::move(tables.head)));
  }
  return absl::OkStatus();
}

absl::Status DecoderModel::CheckOptions() const {
  // Far beyond any step or cache. Within them the bytes of the workspace fit an int64 for every
  // config, and the ids of the blocks a BlockId.
  struct Limit {
    const char* name;
    int64_t value;
    int64_t most;
  };
  for (const Limit& limit :
       {Limit{"max_step_tokens", options_.max_step_tokens, 1 << 28},
        Limit{"max_step_logits", options_.max_step_logits, 1 << 28},
        Limit{"kv_cache_tokens", options_.kv_cache_tokens, int64_t{1} << 34}}) {
    if (limit.value < 1 || limit.value > limit.most) {
      return absl::InvalidArgumentError(
          absl::StrCat(limit.name, ": expected 1 to ", limit.most, ", found ", limit.value));
    }
  }
  const int granularity = backend_->cache_block_granularity();
  if (options_.block_size < 1 || options_.block_size > kMaxBlockSize ||
      options_.block_size % granularity != 0) {
    return absl::InvalidArgumentError(absl::StrCat("block_size: expected a multiple of ",
                                                   granularity, " up to ", kMaxBlockSize,
                                                   ", found ", options_.block_size));
  }
  return absl::OkStatus();
}

absl::Status DecoderModel::PlanCache() {
  KvCacheLayout& layout = attention_.layout;
  layout.num_layers = config().num_layers;
  layout.num_kv_heads = config().num_kv_heads;
  layout.head_dim = config().head_dim;
  layout.block_size = options_.block_size;
  layout.type = options_.kv_cache_type;
  US_ASSIGN_OR_RETURN(layout.token_bytes, CacheTokenBytes(*backend_, layout.type, layout.head_dim));
  layout.num_blocks = layout.BlocksForTokens(options_.kv_cache_tokens);
  if (layout.num_blocks > std::numeric_limits<int64_t>::max() / layout.block_bytes()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("KV cache of ", options_.kv_cache_tokens, " tokens: ", layout.num_blocks,
                     " blocks of ", layout.block_bytes(), " bytes needed, more than 2^63 bytes"));
  }
  return absl::OkStatus();
}

absl::Status DecoderModel::AllocateCache() {
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> cache =
      backend_->Allocate(attention_.layout.total_bytes());
  if (!cache.ok()) {
    return Annotate(cache.status(),
                    absl::StrCat("KV cache of ", options_.kv_cache_tokens, " tokens"));
  }
  attention_.cache = *std::move(cache);
  return absl::OkStatus();
}

absl::Status DecoderModel::Load() {
  US_RETURN_IF_ERROR(CheckOptions());
  US_RETURN_IF_ERROR(PlanCache());
  US_RETURN_IF_ERROR(LoadTables());
  const std::string norm = kFinalNormName;
  US_ASSIGN_OR_RETURN(const TensorView norm_view,
                      GetTensor(*checkpoint_, norm, {}, {config().hidden_size}));
  US_RETURN_IF_ERROR(CheckFinite(*checkpoint_, norm, norm_view));
  US_ASSIGN_OR_RETURN(final_norm_, backend_->LoadVector(norm_view));

  for (int layer = 0; layer < config().num_layers; ++layer) {
    US_ASSIGN_OR_RETURN(DecoderLayer loaded, LoadDecoderLayer(*checkpoint_, layer, *backend_));
    layers_.push_back(std::move(loaded));
  }

  const std::vector<float> frequencies = RopeInverseFrequencies(config());
  US_ASSIGN_OR_RETURN(attention_.inverse_frequencies,
                      backend_->LoadVector({DType::kF32,
                                            {static_cast<int64_t>(frequencies.size())},
                                            reinterpret_cast<const uint8_t*>(frequencies.data())}));
  US_RETURN_IF_ERROR(AllocateCache());
  US_ASSIGN_OR_RETURN(buffers_,
                      LayerBuffers::Allocate(config(), options_.max_step_tokens, *backend_));
  US_ASSIGN_OR_RETURN(logits_,
                      backend_->AllocateWorkspace(options_.max_step_logits * config().vocab_size *
                                                  static_cast<int64_t>(sizeof(float))));
  return absl::OkStatus();
}

MemoryUsage DecoderModel::memory_usage() const {
  MemoryUsage usage;
  for (const DecoderLayer& layer : layers_) usage.weights += layer.resident_bytes();
  usage.weights += final_norm_->resident_bytes();
  usage.embedding = embedding_->resident_bytes();
  if (untied_head_ != nullptr) usage.embedding += untied_head_->resident_bytes();
  usage.kv_cache = attention_.cache->resident_bytes();
  usage.workspace =
      buffers_.resident_bytes() + logits_->resident_bytes() + backend_->workspace_bytes();
  return usage;
}

absl::Status DecoderModel::Forward(absl::Span<const SequenceSlice> sequences) {
  num_logits_ = 0;
  US_RETURN_IF_ERROR(step_.Build(sequences, config(), options_, attention_.layout));
  Backend& backend = *backend_;
  US_RETURN_IF_ERROR(backend.BeginStep(step_.input()));
  backend.Embed(*embedding_, *buffers_.hidden);
  for (int layer = 0; layer < config().num_layers; ++layer) {
    RunDecoderLayer(shape_, layers_[static_cast<size_t>(layer)], layer, attention_, buffers_,
                    backend);
  }
  backend.Logits({buffers_.hidden.get(), final_norm_.get(), shape_.epsilon},
                 untied_head_ != nullptr ? *untied_head_ : *embedding_, *logits_);
  US_RETURN_IF_ERROR(backend.EndStep());
  US_RETURN_IF_ERROR(checkpoint_->CheckIntact());
  num_logits_ = static_cast<int64_t>(step_.input().logit_tokens.size());
  return absl::OkStatus();
}

absl::Status DecoderModel::CheckLogitsRow(int64_t row) const {
  if (row >= 0 && row < num_logits_) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("logits row ", row, ": the last step computed ", num_logits_, " rows"));
}

absl::Status DecoderModel::Sample(absl::Span<const SampleRequest> requests,
                                  absl::Span<SampledToken> tokens) {
  US_CHECK(requests.size() == tokens.size());
  for (const SampleRequest& request : requests) {
    US_RETURN_IF_ERROR(CheckLogitsRow(request.logits_row));
  }
  return backend_->Sample(*logits_, config().vocab_size, requests, tokens);
}

absl::Status DecoderModel::CopyLogits(int64_t row, absl::Span<float> logits) {
  US_CHECK(static_cast<int64_t>(logits.size()) == config().vocab_size);
  US_RETURN_IF_ERROR(CheckLogitsRow(row));
  return backend_->CopyLogits(*logits_, config().vocab_size, row, logits);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> LoadModel(std::shared_ptr<const Checkpoint> checkpoint,
                                                 std::shared_ptr<Backend> backend,
                                                 const ModelOptions& options) {
  auto model = std::make_unique<DecoderModel>(std::move(checkpoint), std::move(backend), options);
  US_RETURN_IF_ERROR(model->Load());
  return model;
}

}  // namespace ultrasketch
