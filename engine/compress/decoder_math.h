// The operations of a decoder layer between its linear sites, on whole windows of text in float:
// what a calibration needs to follow activations through a model without a KV cache.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_DECODER_MATH_H_
#define ULTRASKETCH_ENGINE_COMPRESS_DECODER_MATH_H_

#include <cstdint>

#include "absl/types/span.h"

#include "engine/base/thread_pool.h"

namespace ultrasketch {

// All matrices are row-major with one row a token. None of the results depends on the number of
// threads.

// out = hidden / rms(hidden) * weight, [num_tokens, width].
void NormalizeRows(const float* hidden, absl::Span<const float> weight, float epsilon,
                   int64_t num_tokens, float* out, ThreadPool& pool);

// The shape of a layer's attention, and what it does to queries and keys before they meet.
struct WindowAttention {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  // Norms of each head's queries and keys, [head_dim]; none: not normalized.
  float epsilon = 0;
  absl::Span<const float> query_norm;
  absl::Span<const float> key_norm;
  absl::Span<const float> inverse_frequencies;  // [head_dim / 2]; none: no rotary embedding
};

// Normalizes and rotates q and k of qkv [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim] in
// place, for windows of `window_tokens` tokens that start at position 0, and writes causal
// attention of q over k and v to out [num_tokens, num_heads * head_dim]. The windows' lengths add
// up to num_tokens.
void AttendWindows(const WindowAttention& attention, absl::Span<const int64_t> window_tokens,
                   float* qkv, float* out, ThreadPool& pool);

// out [num_tokens, width] = silu(gate) * up, gate_up [num_tokens, 2 * width], gate first.
void GateRows(const float* gate_up, int64_t width, int64_t num_tokens, float* out,
              ThreadPool& pool);

// Sum over i < count of e_i = exp(scale * (logits[i] - maximum)), for logits of at most `maximum`
// and a positive scale; `weighted` is the sum of e_i * values[i].
double SumOfExp(const float* logits, float maximum, float scale, const float* values, int64_t count,
                double& weighted);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_DECODER_MATH_H_
