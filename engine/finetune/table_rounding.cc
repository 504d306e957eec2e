#include "engine/finetune/table_rounding.h"

#include <ATen/ATen.h>

namespace ultrasketch {
namespace {

// Those of RoundGroup in engine/codecs/grouped/quantize_table.cc.
constexpr int kNumScales = 10;
constexpr double kScaleStep = 1.0 / 24;

struct Rounding {
  at::Tensor scale;   // [groups, 1], bfloat16 values as float
  at::Tensor values;  // [groups, 64], integers
};

Rounding RoundWith(const at::Tensor& weights, const at::Tensor& scale, double limit) {
  Rounding rounding;
  rounding.scale = scale.to(at::kBFloat16).to(at::kFloat);
  // Where the scale is zero, so are all quotients.
  const at::Tensor divisor = rounding.scale.masked_fill(rounding.scale == 0, 1e30);
  rounding.values = (weights / divisor).clamp_(-limit, limit).round_();
  return rounding;
}

}  // namespace

at::Tensor RoundToGroups(const at::Tensor& table, GroupedType type) {
  const int64_t rows = table.size(0);
  const int64_t cols = table.size(1);
  const int64_t padding = GroupsInRow(cols) * kGroupColumns - cols;
  const at::Tensor padded = padding == 0 ? table : at::constant_pad_nd(table, {0, padding});
  const at::Tensor weights = padded.contiguous().view({-1, kGroupColumns});
  const double limit = GroupedLimit(type);
  const at::Tensor largest = weights.abs().amax(-1, /*keepdim=*/true) / limit;
  Rounding best = RoundWith(weights, largest, limit);
  if (type == GroupedType::kInt4) {
    const auto error_of = [&weights](const Rounding& rounding) {
      return (weights - rounding.values * rounding.scale).square_().sum(-1, /*keepdim=*/true);
    };
    at::Tensor least_error = error_of(best);
    for (int step = 0; step < kNumScales; ++step) {
      const at::Tensor integers =
          RoundWith(weights, largest * (1 - kScaleStep * step), limit).values;
      const at::Tensor energy = integers.square().sum(-1, /*keepdim=*/true);
      const at::Tensor fitted =
          (weights * integers).sum(-1, /*keepdim=*/true) / energy.clamp_min(1.0);
      const Rounding refitted = RoundWith(weights, fitted, limit);
      const at::Tensor error = error_of(refitted);
      const at::Tensor better = error < least_error;
      least_error = at::where(better, error, least_error);
      best.scale = at::where(better, refitted.scale, best.scale);
      best.values = at::where(better, refitted.values, best.values);
    }
  }
  const at::Tensor decoded = (best.values * best.scale).view({rows, cols + padding});
  return padding == 0 ? decoded : decoded.narrow(1, 0, cols).contiguous();
}

}  // namespace ultrasketch
