// A device that holds weights and computes the operations of a step. Models are written once, in
// terms of this interface.
//
// A layer is nothing but linear sites that are applied one after the other. Apply sees the whole of
// it at once: what the site's input is made of, the site, and where its output goes. What of that
// is one kernel is the backend's decision, and so is the form that an input has on the way to the
// product (for a folded site, sums of columns).
//
// Activations are matrices [num_tokens, width] in device memory, of the element type that the
// backend likes (CPU: float).
//
// One step: BeginStep, operations in order, EndStep. Operations may be asynchronous; what goes
// wrong in them is reported by EndStep. One thread at a time. Between BeginStep and EndStep no
// buffer of the device is allocated; on CPUs the pages of a buffer come with their first use, and
// some memory may go to bookkeeping.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_BACKEND_H_
#define ULTRASKETCH_ENGINE_BACKENDS_BACKEND_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/backends/sampling/sampling.h"
#include "engine/backends/step_stages.h"
#include "engine/base/tensor.h"
#include "engine/codecs/codec.h"
#include "engine/kv/block_pool.h"
#include "engine/kv/cache_layout.h"

namespace ultrasketch {

// Device memory, owned. Freed on destruction; must not outlive its backend.
class DeviceBuffer {
 public:
  virtual ~DeviceBuffer() = default;
  virtual void* data() = 0;
  virtual const void* data() const = 0;
  virtual int64_t num_bytes() const = 0;
  // Bytes that it takes now: on CPUs pages come with their first use. From any thread.
  virtual int64_t resident_bytes() const { return num_bytes(); }
};

// Weights on the device. Immutable; must not outlive their backend or the encoded weights that they
// were loaded from.
class DeviceLinear {
 public:
  virtual ~DeviceLinear() = default;
  virtual int64_t rows() const = 0;
  virtual int64_t cols() const = 0;
  virtual int64_t resident_bytes() const = 0;
};

class DeviceVector {  // norm weights
 public:
  virtual ~DeviceVector() = default;
  virtual int64_t size() const = 0;
  virtual int64_t resident_bytes() const = 0;
};

class DeviceEmbedding {  // a [vocab_size, hidden_size] table: token embedding or output head
 public:
  virtual ~DeviceEmbedding() = default;
  virtual int64_t resident_bytes() const = 0;
};

// A sequence's share of a step, as attention needs it. Tokens of the step are numbered through, in
// order of sequences.
struct AttentionSpan {
  int64_t first_token = 0;  // row of its first new token
  int64_t num_tokens = 0;
  int64_t num_cached = 0;
  absl::Span<const BlockId> blocks;
};

struct StepInput {
  absl::Span<const int32_t> token_ids;     // [num_tokens]
  absl::Span<const int32_t> positions;     // [num_tokens]
  absl::Span<const AttentionSpan> spans;   // cover the tokens in order
  absl::Span<const int32_t> logit_tokens;  // rows whose logits are wanted
};

struct AttentionShape {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;

  int64_t query_width() const { return int64_t{num_heads} * head_dim; }
  int64_t key_width() const { return int64_t{num_kv_heads} * head_dim; }
  int64_t qkv_width() const { return query_width() + 2 * key_width(); }
};

// --- What a linear site reads: x [num_tokens, cols] ---

// x = hidden / rms(hidden) * weight, rms over all columns, with epsilon.
struct Normalized {
  const DeviceBuffer* hidden;  // [num_tokens, cols]
  const DeviceVector* weight;  // [cols]
  float epsilon;
};

// Each head's query and key as Normalized has it, over head_dim.
struct HeadNorms {
  const DeviceVector* query;  // [head_dim]
  const DeviceVector* key;    // [head_dim]
  float epsilon;
};

// x = causal attention of the queries over the cache, scores scaled by head_dim^-0.5. Before that
// queries and keys are normalized if there are norms, then rotated (pairs (i, i + head_dim / 2), as
// Hugging Face's Llama does) by position * inverse_frequencies; then keys and values are stored in
// `layer` of the cache.
//
// May change qkv, which is not read again.
struct Attended {
  AttentionShape shape;
  DeviceBuffer* qkv;  // [num_tokens, qkv_width]
  std::optional<HeadNorms> head_norms;
  const DeviceVector* inverse_frequencies;  // [head_dim / 2]; null: no rotary embedding
  const KvCacheLayout* layout;
  int layer;
  DeviceBuffer* cache;
};

// x = silu(gate) * up.
struct Gated {
  const DeviceBuffer* gate_up;  // [num_tokens, 2 * cols], gates first
};

using SiteInput = std::variant<Normalized, Attended, Gated>;

// --- Where its output goes: y [num_tokens, rows] = W x + bias ---
struct SiteOutput {
  enum class Mode {
    kWrite,
    kAdd,  // to what is there: a residual stream
    // y are gates and ups that are read once, as Gated of `gated_site`. What is in the buffer until
    // then is the backend's affair: it may have gated already.
    kWriteGates,
  };
  DeviceBuffer* to;
  Mode mode = Mode::kWrite;
  const DeviceLinear* gated_site = nullptr;  // of kWriteGates
};

class Backend {
 public:
  virtual ~Backend() = default;

  // "cpu", "cuda:0".
  virtual std::string_view name() const = 0;
  // For people: processor or card, instruction set, threads.
  virtual std::string description() const = 0;
  // Bytes of one activation.
  virtual int activation_bytes() const = 0;
  // Bytes that a token's key and value of one head take in a cache (KvCacheLayout::token_bytes); 0
  // when the backend has no such cache for heads of that size.
  virtual int64_t cache_token_bytes(KvCacheType type, int head_dim) const = 0;
  // Block sizes of the cache are a multiple of this many tokens.
  virtual int cache_block_granularity() const = 0;
  // Whether memory of a cache comes with its use, and goes back to the system by DiscardBlocks.
  virtual bool can_discard_blocks() const { return false; }
  // Between steps: what these blocks of the cache hold, in all layers, is not needed any more; what
  // is read of them before it is written again is undefined.
  virtual void DiscardBlocks(const KvCacheLayout& /*layout*/, absl::Span<const BlockId> /*blocks*/,
                             DeviceBuffer& /*cache*/) {}

  // Bytes of the device that it holds for itself, beside what the functions below return. From any
  // thread, once steps are reserved.
  virtual int64_t workspace_bytes() const { return 0; }

  // Bytes that Allocate could still give, as far as the system tells. From any thread.
  virtual int64_t available_bytes() const = 0;

  // Bytes of the device in use for whatever purpose, as the system tells: on CPUs what this process
  // has resident, on GPUs what all processes have. 0 when it does not tell. From any thread.
  virtual int64_t used_bytes() const = 0;

  // --- Memory and weights. RESOURCE_EXHAUSTED with bytes needed and available. ---
  virtual absl::StatusOr<std::unique_ptr<DeviceBuffer>> Allocate(int64_t num_bytes) = 0;
  // Memory for what does not outlast a step: its address and contents hold from one BeginStep to
  // the next, of this backend or of one that shares the device with it. Buffers of one backend are
  // apart; those of backends that share may be in the same place.
  virtual absl::StatusOr<std::unique_ptr<DeviceBuffer>> AllocateWorkspace(int64_t num_bytes) {
    return Allocate(num_bytes);
  }
  // `bias` has rows() entries or none. The result may refer to `encoded`, which must outlive it.
  virtual absl::StatusOr<std::unique_ptr<DeviceLinear>> LoadLinear(
      const EncodedLinear& encoded, absl::Span<const float> bias) = 0;
  virtual absl::StatusOr<std::unique_ptr<DeviceVector>> LoadVector(const TensorView& values) = 0;
  // The table [vocab_size, hidden_size] in whatever form it is stored: the result shares it, and
  // must not outlive what it refers to.
  virtual absl::StatusOr<std::unique_ptr<DeviceEmbedding>> LoadEmbedding(
      std::shared_ptr<const EncodedLinear> table) = 0;

  // Memory of the workspace for steps of up to `num_tokens` tokens with the sites that have been
  // loaded so far. After the last LoadLinear, before the first step; larger steps must not begin.
  virtual absl::Status ReserveStep(int64_t num_tokens) = 0;

  // --- One step ---
  virtual absl::Status BeginStep(const StepInput& step) = 0;
  virtual absl::Status EndStep() = 0;

  // hidden [num_tokens, hidden_size] = rows of the table.
  virtual void Embed(const DeviceEmbedding& embedding, DeviceBuffer& hidden) = 0;

  // One site: makes its input, multiplies, puts the output where it belongs. The output's buffer is
  // none of the input's.
  virtual void Apply(const SiteInput& input, const DeviceLinear& site,
                     const SiteOutput& output) = 0;

  // Apply's part before the product, whose result nobody reads: for measurements.
  virtual void ApplyWithoutProduct(const SiteInput& input, const DeviceLinear& site) = 0;

  // logits [logit_tokens, vocab_size] = table . x for the step's logit_tokens, with x of all
  // tokens.
  virtual void Logits(const Normalized& x, const DeviceEmbedding& head, DeviceBuffer& logits) = 0;

  // --- After EndStep ---
  // Where the time of the step went, of those stages that are the backend's (kSampling and kOther
  // are 0), when it was measured: on CPUs every step is, on GPUs one of many. On GPUs it is the
  // device's time, of which little is left to measure when the host is slower.
  virtual std::optional<StageDurations> stage_durations() const { return std::nullopt; }

  // logits [num_rows, vocab_size]; requests name rows.
  virtual absl::Status Sample(const DeviceBuffer& logits, int64_t vocab_size,
                              absl::Span<const SampleRequest> requests,
                              absl::Span<SampledToken> tokens) = 0;
  virtual absl::Status CopyLogits(const DeviceBuffer& logits, int64_t vocab_size, int64_t row,
                                  absl::Span<float> out) = 0;
};

struct BackendOptions {
  int num_threads = 0;  // CPU threads; 0: all that the process may use
  // A backend of the same device to share it with, or null: both may then have threads and
  // workspace in common, and num_threads is not looked at. From the BeginStep of one to the last
  // use of that step's results the other must not begin a step.
  std::shared_ptr<Backend> beside = nullptr;
};

// `device` is "cpu", "cuda", "cuda:N" or "auto" (a CUDA device when there is one, else the CPU).
// INVALID_ARGUMENT for anything else, UNAVAILABLE when there is no such device.
absl::StatusOr<std::shared_ptr<Backend>> CreateBackend(std::string_view device,
                                                       const BackendOptions& options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BACKENDS_BACKEND_H_
