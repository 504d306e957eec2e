#include "engine/finetune/parameter_store.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "engine/base/check.h"
#include "engine/finetune/torch_version.h"

namespace ultrasketch {
namespace {

// Parameters begin at multiples of this many floats, as kernels like them.
constexpr int64_t kAlignment = 64;

int64_t Aligned(int64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

const char* ParameterGroupName(ParameterGroup group) {
  constexpr const char* kNames[kNumParameterGroups] = {"latents", "continuous", "tables"};
  return kNames[static_cast<int>(group)];
}

void ParameterStore::Add(ParameterGroup group, std::string name, at::Tensor* tensor) {
  US_CHECK(!values_.defined());
  US_CHECK(tensor->scalar_type() == at::kFloat);
  entries_.push_back({group, std::move(name), tensor, 0, tensor->numel()});
}

void ParameterStore::Finish(at::Device device) {
  US_CHECK(!values_.defined());
  std::stable_sort(entries_.begin(), entries_.end(),
                   [](const Entry& a, const Entry& b) { return a.group < b.group; });
  int64_t end = 0;
  for (Entry& entry : entries_) {
    entry.first = end;
    end += Aligned(entry.size);
    group_begins_[static_cast<size_t>(entry.group) + 1] = end;
  }
  for (size_t group = 1; group < group_begins_.size(); ++group) {
    group_begins_[group] = std::max(group_begins_[group], group_begins_[group - 1]);
  }
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device);
  values_ = at::zeros({end}, options);
  gradients_ = at::zeros({end}, options);
  first_moments_ = at::zeros({end}, options);
  second_moments_ = at::zeros({end}, options);
  num_steps_ = at::zeros({1}, options);
  learning_rates_ = at::zeros({kNumParameterGroups}, options);
  for (Entry& entry : entries_) {
    const std::vector<int64_t> shape = entry.tensor->sizes().vec();
    at::Tensor value = values_.narrow(0, entry.first, entry.size).view(shape);
    value.copy_(*entry.tensor);
    value = value.detach();
    value.requires_grad_(true);
    // Backward passes add to it in place.
    value.mutable_grad() = gradients_.narrow(0, entry.first, entry.size).view(shape);
    *entry.tensor = value;
  }
}

int64_t ParameterStore::GroupSize(ParameterGroup group) const {
  int64_t size = 0;
  for (const Entry& entry : entries_) size += entry.group == group ? entry.size : 0;
  return size;
}

double ParameterStore::RootMeanSquare(ParameterGroup group) const {
  const auto index = static_cast<size_t>(group);
  const int64_t first = group_begins_[index];
  const double norm =
      values_.narrow(0, first, group_begins_[index + 1] - first).detach().norm().item<double>();
  return norm > 0 ? norm / std::sqrt(static_cast<double>(GroupSize(group))) : 1.0;
}

std::vector<std::pair<std::string, int64_t>> ParameterStore::Layout() const {
  std::vector<std::pair<std::string, int64_t>> layout;
  layout.reserve(entries_.size());
  for (const Entry& entry : entries_) layout.emplace_back(entry.name, entry.size);
  return layout;
}

at::Tensor ParameterStore::Step(const AdamOptions& options) {
  const at::NoGradGuard no_gradient;
  const at::Tensor norm = gradients_.norm().view({1});
  const at::Tensor not_finite = at::isfinite(norm).logical_not().to(at::kFloat);
  // What gradients are divided by.
  const at::Tensor gradient_scale = (norm / options.max_gradient_norm).clamp_min_(1.0);
  num_steps_.add_(1 - not_finite);
  for (size_t group = 0; group < kNumParameterGroups; ++group) {
    if (group_begins_[group] == group_begins_[group + 1]) continue;
    StepGroup(group, options, gradient_scale, not_finite);
  }
  return norm;
}

void ParameterStore::StepGroup(size_t group, const AdamOptions& options,
                               const at::Tensor& gradient_scale, const at::Tensor& not_finite) {
  const int64_t first = group_begins_[group];
  const int64_t size = group_begins_[group + 1] - first;
  at::Tensor value = values_.narrow(0, first, size);
  at::Tensor gradient = gradients_.narrow(0, first, size);
  at::Tensor first_moment = first_moments_.narrow(0, first, size);
  at::Tensor second_moment = second_moments_.narrow(0, first, size);
  const at::Tensor learning_rate = learning_rates_.narrow(0, static_cast<int64_t>(group), 1);
#if US_TORCH_AT_LEAST(2, 2)
  if (value.is_cuda()) {
    at::_fused_adamw_({value}, {gradient}, {first_moment}, {second_moment}, {}, {num_steps_},
                      learning_rate, options.beta1, options.beta2, /*weight_decay=*/0.0,
                      options.epsilon, /*amsgrad=*/false, /*maximize=*/false, gradient_scale,
                      not_finite);
    return;
  }
#endif
  const at::Tensor kept = at::where(not_finite > 0, at::zeros_like(gradient), gradient);
  kept.div_(gradient_scale);
  // With a gradient that is not finite nothing changes, the moments included.
  const at::Tensor active = 1 - not_finite;
  const at::Tensor decay1 = 1 - active * (1 - options.beta1);
  const at::Tensor decay2 = 1 - active * (1 - options.beta2);
  first_moment.mul_(decay1).add_(kept, 1 - options.beta1);
  second_moment.mul_(decay2).addcmul_(kept, kept, 1 - options.beta2);
  const at::Tensor steps = num_steps_.clamp_min(1);
  const at::Tensor correction1 = 1 - at::pow(options.beta1, steps);
  const at::Tensor correction2 = 1 - at::pow(options.beta2, steps);
  const at::Tensor step_size = learning_rate * active / correction1;
  const at::Tensor denominator = second_moment.div(correction2).sqrt_().add_(options.epsilon);
  value.sub_(first_moment.div(denominator).mul_(step_size));
}

}  // namespace ultrasketch
