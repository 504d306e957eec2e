// A decoder-only language model ready to compute steps.
//
// The engine computes a step; the caller decides the step: which sequences, which of their tokens,
// which cache blocks. There is no prefill phase and no decode phase here: a step takes any mix of
// sequences with any number of new tokens each.
#ifndef ULTRASKETCH_ENGINE_MODELS_MODEL_H_
#define ULTRASKETCH_ENGINE_MODELS_MODEL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/backends/backend.h"
#include "engine/backends/sampling/sampling.h"
#include "engine/backends/step_stages.h"
#include "engine/format/checkpoint.h"
#include "engine/format/model_config.h"
#include "engine/kv/cache_layout.h"
#include "engine/kv/sequence_slice.h"

namespace ultrasketch {

struct ModelOptions {
  // Most tokens in one step, over all sequences: sizes the workspace.
  int64_t max_step_tokens = 2048;

  // Most rows of logits in one step.
  int64_t max_step_logits = 256;

  // Capacity of the KV cache in tokens (rounded up to whole blocks) and tokens in a block: a
  // multiple of the backend's cache_block_granularity(), at most 4096.
  int64_t kv_cache_tokens = 16384;
  int block_size = 16;

  // How keys and values are kept.
  KvCacheType kv_cache_type = KvCacheType::kFp16;
};

// Bytes held, by what for. They add up to what the model holds on its device.
struct MemoryUsage {
  int64_t weights = 0;    // linear sites and norms
  int64_t embedding = 0;  // token embedding and output head
  int64_t kv_cache = 0;
  int64_t workspace = 0;  // activations, logits, staging: what models that share a device share

  int64_t total() const { return weights + embedding + kv_cache + workspace; }
};

// Not thread-safe: one thread owns a model.
class Model {
 public:
  virtual ~Model() = default;

  virtual const ModelConfig& config() const = 0;
  virtual const ModelOptions& options() const = 0;
  virtual const KvCacheLayout& cache_layout() const = 0;
  // Also from other threads, while the model computes.
  virtual MemoryUsage memory_usage() const = 0;

  // Backend::can_discard_blocks and DiscardBlocks, of the model's cache.
  virtual bool can_discard_blocks() const { return false; }
  virtual void DiscardBlocks(absl::Span<const BlockId> /*blocks*/) {}

  // Computes one step and keeps its logits, rows in order of sequences, until the next Forward, of
  // this model or of one whose backend shares the device with this one's (BackendOptions::beside).
  // INVALID_ARGUMENT when the step exceeds the options' limits or the model's context, an id is
  // outside the vocabulary or a block list is too short; a device's failure as the backend reports
  // it; DATA_LOSS once a file of weights that are read where they are mapped has been cut short. A
  // sequence's logits do not depend, to the bit, on the other sequences of the step or on how its
  // tokens are spread over steps.
  virtual absl::Status Forward(absl::Span<const SequenceSlice> sequences) = 0;

  // Where the last Forward's time went, when that was measured: see Backend::stage_durations.
  virtual std::optional<StageDurations> stage_durations() const { return std::nullopt; }

  // Rows of logits that the last Forward computed.
  virtual int64_t num_logits() const = 0;

  // Draws a token from the last Forward's logits for each request; requests name rows in any order,
  // also repeatedly. `tokens` has as many entries.
  virtual absl::Status Sample(absl::Span<const SampleRequest> requests,
                              absl::Span<SampledToken> tokens) = 0;

  // Row `row` of the last Forward's logits to `logits` [vocab_size].
  virtual absl::Status CopyLogits(int64_t row, absl::Span<float> logits) = 0;
};

// Loads and packs the checkpoint's weights, whatever codec they are in, for `backend`; allocates
// cache and workspace. Errors name file and tensor, or the bytes needed and available
// (RESOURCE_EXHAUSTED).
absl::StatusOr<std::unique_ptr<Model>> LoadModel(std::shared_ptr<const Checkpoint> checkpoint,
                                                 std::shared_ptr<Backend> backend,
                                                 const ModelOptions& options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_MODELS_MODEL_H_
