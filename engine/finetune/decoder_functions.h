// The parts of a decoder layer between its linear sites, as differentiable functions that cost few
// passes over memory. Activations are [num_tokens, width]; the tokens of a batch are its windows
// one after the other, all of one length.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_DECODER_FUNCTIONS_H_
#define ULTRASKETCH_ENGINE_FINETUNE_DECODER_FUNCTIONS_H_

#include <cstdint>

#include <ATen/core/Tensor.h>

namespace ultrasketch {

// x / sqrt(mean(x^2) + epsilon) * weight over the last dimension, in x's type. `weight` [width] is
// float.
at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

// silu(gate) * up of gate_up [num_tokens, 2 * width], gate first.
at::Tensor SwiGlu(const at::Tensor& gate_up);

struct AttentionExtents {
  int64_t num_windows = 0;
  int64_t window_tokens = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
};

// Each head's query and key over their root mean square times a weight [head_dim], float. qkv and
// the result are as CausalAttention takes them.
at::Tensor NormalizeHeads(const at::Tensor& qkv, const at::Tensor& query_weight,
                          const at::Tensor& key_weight, double epsilon,
                          const AttentionExtents& extents);

// Rotary embedding of the positions 0 to window_tokens - 1, each [window_tokens, 1, head_dim / 2]
// in the activations' type.
struct RotaryTables {
  at::Tensor cosine;
  at::Tensor sine;
};

// Causal attention of each window to itself. qkv [num_tokens, (num_heads + 2 * num_kv_heads) *
// head_dim] to [num_tokens, num_heads * head_dim].
at::Tensor CausalAttention(const at::Tensor& qkv, const RotaryTables& rotary,
                           const AttentionExtents& extents);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_DECODER_FUNCTIONS_H_
