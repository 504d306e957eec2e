#include "engine/finetune/decoder_functions.h"

#include <tuple>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "engine/finetune/torch_version.h"

namespace ultrasketch {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

class RmsNormFunction : public Function<RmsNormFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            double epsilon) {
    const at::Tensor inverse =
        x.to(at::kFloat).square().mean(-1, /*keepdim=*/true).add_(epsilon).rsqrt_();
    context->save_for_backward({x, weight, inverse});
    return (x * inverse).mul_(weight).to(x.scalar_type());
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& x = saved[0];
    const at::Tensor& weight = saved[1];
    const at::Tensor& inverse = saved[2];
    const at::Tensor normed = x * inverse;  // float
    const at::Tensor gradient = gradients[0].to(at::kFloat);
    const at::Tensor weight_gradient = (gradient * normed).sum(0);
    const at::Tensor scaled = gradient * weight;
    const at::Tensor mean = (scaled * normed).mean(-1, /*keepdim=*/true);
    const at::Tensor x_gradient = (scaled - normed * mean).mul_(inverse).to(x.scalar_type());
    return {x_gradient, weight_gradient, at::Tensor()};
  }
};

class SwiGluFunction : public Function<SwiGluFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate_up) {
    context->save_for_backward({gate_up});
    const int64_t width = gate_up.size(-1) / 2;
    return at::silu(gate_up.narrow(-1, 0, width)).mul_(gate_up.narrow(-1, width, width));
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const at::Tensor gate_up = context->get_saved_variables()[0];
    const int64_t width = gate_up.size(-1) / 2;
    const at::Tensor gate = gate_up.narrow(-1, 0, width);
    const at::Tensor up = gate_up.narrow(-1, width, width);
    const at::Tensor& gradient = gradients[0];
    at::Tensor result = at::empty_like(gate_up);
    result.narrow(-1, 0, width).copy_(at::silu_backward(gradient * up, gate));
    at::Tensor up_gradient = result.narrow(-1, width, width);
    at::mul_out(up_gradient, at::silu(gate), gradient);
    return {result};
  }
};

// out = x rotated by the angles, or back by them where `sign` is -1. x and out are [windows,
// tokens, heads, head_dim]; the pairs are (i, i + head_dim / 2).
void Rotate(const at::Tensor& x, const at::Tensor& cosine, const at::Tensor& sine, double sign,
            const at::Tensor& out) {
  const int64_t half = x.size(-1) / 2;
  const at::Tensor x_low = x.narrow(-1, 0, half);
  const at::Tensor x_high = x.narrow(-1, half, half);
  at::Tensor out_low = out.narrow(-1, 0, half);
  at::Tensor out_high = out.narrow(-1, half, half);
  at::mul_out(out_low, x_low, cosine);
  out_low.addcmul_(x_high, sine, -sign);
  at::mul_out(out_high, x_high, cosine);
  out_high.addcmul_(x_low, sine, sign);
}

// qkv [windows, tokens, heads, head_dim] to rotated queries, rotated keys, and values, each
// [windows, heads, tokens, head_dim].
class SplitAndRotateFunction : public Function<SplitAndRotateFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& qkv,
                               const at::Tensor& cosine, const at::Tensor& sine, int64_t num_heads,
                               int64_t num_kv_heads) {
    context->save_for_backward({cosine, sine});
    context->saved_data["num_heads"] = num_heads;
    context->saved_data["num_kv_heads"] = num_kv_heads;
    const int64_t num_rotated = num_heads + num_kv_heads;
    const at::Tensor rotated =
        at::empty({qkv.size(0), qkv.size(1), num_rotated, qkv.size(3)}, qkv.options());
    Rotate(qkv.narrow(2, 0, num_rotated), cosine, sine, 1, rotated);
    return {rotated.narrow(2, 0, num_heads).transpose(1, 2),
            rotated.narrow(2, num_heads, num_kv_heads).transpose(1, 2),
            qkv.narrow(2, num_rotated, num_kv_heads).clone().transpose(1, 2)};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const int64_t num_heads = context->saved_data["num_heads"].toInt();
    const int64_t num_kv_heads = context->saved_data["num_kv_heads"].toInt();
    const at::Tensor& queries = gradients[0];
    const at::Tensor result =
        at::empty({queries.size(0), queries.size(2), num_heads + 2 * num_kv_heads, queries.size(3)},
                  queries.options());
    Rotate(queries.transpose(1, 2), saved[0], saved[1], -1, result.narrow(2, 0, num_heads));
    Rotate(gradients[1].transpose(1, 2), saved[0], saved[1], -1,
           result.narrow(2, num_heads, num_kv_heads));
    result.narrow(2, num_heads + num_kv_heads, num_kv_heads).copy_(gradients[2].transpose(1, 2));
    return {result, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

at::Tensor ScaledDotProduct(const at::Tensor& queries, const at::Tensor& keys,
                            const at::Tensor& values) {
#if US_TORCH_AT_LEAST(2, 5)
  return at::scaled_dot_product_attention(queries, keys, values, /*attn_mask=*/{},
                                          /*dropout_p=*/0.0, /*is_causal=*/true,
                                          /*scale=*/std::nullopt,
                                          /*enable_gqa=*/queries.size(1) != keys.size(1));
#else
  const int64_t sharing = queries.size(1) / keys.size(1);
  return std::get<0>(at::_scaled_dot_product_attention(
      queries, sharing == 1 ? keys : keys.repeat_interleave(sharing, 1),
      sharing == 1 ? values : values.repeat_interleave(sharing, 1), /*attn_mask=*/{},
      /*dropout_p=*/0.0, /*need_attn_weights=*/false, /*is_causal=*/true));
#endif
}

}  // namespace

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
#if US_TORCH_AT_LEAST(2, 9)
  // One kernel each way.
  if (x.is_cuda()) return at::rms_norm(x, {x.size(-1)}, weight.to(x.scalar_type()), epsilon);
#endif
  return RmsNormFunction::apply(x, weight, epsilon);
}

at::Tensor SwiGlu(const at::Tensor& gate_up) { return SwiGluFunction::apply(gate_up); }

at::Tensor NormalizeHeads(const at::Tensor& qkv, const at::Tensor& query_weight,
                          const at::Tensor& key_weight, double epsilon,
                          const AttentionExtents& extents) {
  const at::Tensor heads =
      qkv.view({-1, extents.num_heads + 2 * extents.num_kv_heads, extents.head_dim});
  const auto normalize = [&](int64_t first, int64_t count, const at::Tensor& weight) {
    const at::Tensor rows = heads.narrow(1, first, count).reshape({-1, extents.head_dim});
    return RmsNorm(rows, weight, epsilon).view({-1, count, extents.head_dim});
  };
  const int64_t num_normed = extents.num_heads + extents.num_kv_heads;
  return at::cat({normalize(0, extents.num_heads, query_weight),
                  normalize(extents.num_heads, extents.num_kv_heads, key_weight),
                  heads.narrow(1, num_normed, extents.num_kv_heads)},
                 /*dim=*/1)
      .view(qkv.sizes());
}

at::Tensor CausalAttention(const at::Tensor& qkv, const RotaryTables& rotary,
                           const AttentionExtents& extents) {
  const int64_t num_tokens = extents.num_windows * extents.window_tokens;
  const variable_list split = SplitAndRotateFunction::apply(
      qkv.view({extents.num_windows, extents.window_tokens,
                extents.num_heads + 2 * extents.num_kv_heads, extents.head_dim}),
      rotary.cosine, rotary.sine, extents.num_heads, extents.num_kv_heads);
  return ScaledDotProduct(split[0], split[1], split[2])
      .transpose(1, 2)
      .reshape({num_tokens, extents.num_heads * extents.head_dim});
}

}  // namespace ultrasketch
