// A device that holds weights and computes the operations of a step. Models are written once, in
// terms of this interface.
//
// Activations are matrices [num_tokens, width] in device memory, of the element type that the
// backend likes (CPU: float). An operation that produces the input of a linear site is told which
// site will consume it, and writes that site's *prepared* input: the codec's sketch of it. A device
// can so fuse the sketch into the producer, and the unfolded input never exists.
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
  // The contents are not needed any more: gives the memory back where it comes with use, and what
  // is read before it is written again is undefined.
  virtual void Discard() {}
};

// Weights on the device. Immutable; must not outlive their backend or the encoded weights that they
// were loaded from.
class DeviceLinear {
 public:
  virtual ~DeviceLinear() = default;
  virtual int64_t rows() const = 0;
  virtual int64_t prepared_width() const = 0;
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

  // Bytes of the device that it holds for itself, beside what the functions below return.
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

  // --- One step ---
  // A backend may do an operation together with the next one, and not write what lies between: qkv
  // is not read again after Attention, nor gate_up after SwiGlu; and a prepared input is multiplied
  // once.
  virtual absl::Status BeginStep(const StepInput& step) = 0;
  virtual absl::Status EndStep() = 0;

  // hidden [num_tokens, hidden_size] = rows of the table.
  virtual void Embed(const DeviceEmbedding& embedding, DeviceBuffer& hidden) = 0;

  // prepared = sketch(hidden / rms(hidden) * weight), rms over hidden_size with epsilon.
  virtual void RmsNorm(const DeviceBuffer& hidden, const DeviceVector& weight, float epsilon,
                       const DeviceLinear& consumer, DeviceBuffer& prepared) = 0;

  // output [num_tokens, rows] = W' x + bias, or added to output.
  virtual void Linear(const DeviceLinear& linear, const DeviceBuffer& prepared,
                      DeviceBuffer& output) = 0;
  virtual void LinearAdd(const DeviceLinear& linear, const DeviceBuffer& prepared,
                         DeviceBuffer& output) = 0;

  // Rotates q and k of qkv [num_tokens, qkv_width] in place (pairs (i, i + head_dim/2), as Hugging
  // Face's Llama does) by position * inverse_frequencies [head_dim / 2] and stores k and v in
  // `layer` of the cache.
  virtual void RotateAndStore(const AttentionShape& shape, const DeviceVector& inverse_frequencies,
                              const KvCacheLayout& layout, int layer, DeviceBuffer& qkv,
                              DeviceBuffer& cache) = 0;

  // prepared = sketch(causal attention of q over the cache), scores scaled by head_dim^-0.5.
  virtual void Attention(const AttentionShape& shape, const KvCacheLayout& layout, int layer,
                         const DeviceBuffer& qkv, const DeviceBuffer& cache,
                         const DeviceLinear& consumer, DeviceBuffer& prepared) = 0;

  // prepared = sketch(silu(gate) * up), gate_up [num_tokens, 2 * intermediate_size], gate first.
  virtual void SwiGlu(const DeviceBuffer& gate_up, int64_t intermediate_size,
                      const DeviceLinear& consumer, DeviceBuffer& prepared) = 0;

  // logits [logit_tokens, vocab_size] = table . RmsNorm(hidden) for the step's logit_tokens.
  virtual void Logits(const DeviceBuffer& hidden, const DeviceVector& norm_weight, float epsilon,
                      const DeviceEmbedding& head, DeviceBuffer& logits) = 0;

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
