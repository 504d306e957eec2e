#include "engine/finetune/distillation.h"

#include <algorithm>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

namespace ultrasketch {
namespace {

// Logits at a time: enough to fill a GPU; on a CPU few enough that passes over them stay in cache.
constexpr int64_t kLogitsOnDevice = int64_t{1} << 26;
constexpr int64_t kLogitsOnCpu = int64_t{1} << 20;

int64_t ChunkTokens(const at::Tensor& head) {
  return std::max<int64_t>(16, (head.is_cuda() ? kLogitsOnDevice : kLogitsOnCpu) / head.size(0));
}

at::Tensor LogSoftmax(const at::Tensor& hidden, const at::Tensor& head) {
  return at::log_softmax(hidden.mm(head.t()), /*dim=*/-1, at::kFloat);
}

// Forward states of all layers, and the way back.
class LayerStack {
 public:
  LayerStack(const Decoder& decoder, const RotaryTables& rotary, int64_t num_windows,
             bool checkpoint)
      : decoder_(decoder), rotary_(rotary), num_windows_(num_windows), checkpoint_(checkpoint) {}

  // `first` is the residual stream before the first layer.
  void Forward(const at::Tensor& first) {
    states_.push_back(first.detach().requires_grad_(true));
    for (int layer = 0; layer < decoder_.config().num_layers; ++layer) {
      const at::AutoGradMode mode(!checkpoint_);
      states_.push_back(decoder_.RunLayer(layer, states_.back(), rotary_, num_windows_));
    }
  }

  // After layer `layer`.
  const at::Tensor& state(int layer) const { return states_[static_cast<size_t>(layer) + 1]; }

  // Takes `gradient`, that of the last state, and those of other states in `extra` ([num_layers],
  // undefined where there is none; the last is part of `gradient`) back to the parameters. Returns
  // that of the first state.
  at::Tensor Backward(const at::Tensor& gradient, const std::vector<at::Tensor>& extra) {
    if (!checkpoint_) {
      std::vector<at::Tensor> roots = {states_.back()};
      std::vector<at::Tensor> gradients = {gradient};
      for (size_t layer = 0; layer + 1 < extra.size(); ++layer) {
        if (!extra[layer].defined()) continue;
        roots.push_back(states_[layer + 1]);
        gradients.push_back(extra[layer]);
      }
      torch::autograd::backward(roots, gradients);
      return states_.front().grad();
    }
    at::Tensor current = gradient;
    for (int layer = decoder_.config().num_layers - 1; layer >= 0; --layer) {
      const auto index = static_cast<size_t>(layer);
      const at::AutoGradMode mode(true);
      const at::Tensor input = states_[index].detach().requires_grad_(true);
      torch::autograd::backward({decoder_.RunLayer(layer, input, rotary_, num_windows_)},
                                {current});
      current = input.grad();
      states_[index + 1] = at::Tensor();
      if (index > 0 && index - 1 < extra.size() && extra[index - 1].defined()) {
        current = current + extra[index - 1];
      }
    }
    return current;
  }

 private:
  const Decoder& decoder_;
  const RotaryTables& rotary_;
  const int64_t num_windows_;
  const bool checkpoint_;
  std::vector<at::Tensor> states_;
};

// The teacher's hidden states: before the head, and after each layer where they are asked for.
struct TeacherStates {
  at::Tensor last;
  std::vector<at::Tensor> layers;
};

TeacherStates RunTeacher(const Decoder& teacher, const Decoder::Tables& tables,
                         const RotaryTables& rotary, const at::Tensor& ids, bool keep_layers) {
  const at::NoGradGuard no_gradient;
  TeacherStates states;
  at::Tensor hidden = tables.embedding.index_select(0, ids.reshape({-1}));
  for (int layer = 0; layer < teacher.config().num_layers; ++layer) {
    hidden = teacher.RunLayer(layer, hidden, rotary, ids.size(0));
    if (keep_layers) states.layers.push_back(hidden);
  }
  states.last = teacher.RunFinalNorm(hidden);
  return states;
}

}  // namespace

DivergenceResult Divergence(const at::Tensor& student_hidden, const at::Tensor& student_head,
                            const at::Tensor& teacher_hidden, const at::Tensor& teacher_head,
                            double gradient_scale, bool with_head_gradient) {
  const at::NoGradGuard no_gradient;
  const auto float_options = student_hidden.options().dtype(at::kFloat);
  DivergenceResult result;
  result.sum = at::zeros({1}, float_options);
  result.hidden_gradient = at::empty_like(student_hidden);
  if (with_head_gradient) result.head_gradient = at::zeros(student_head.sizes(), float_options);
  const int64_t num_tokens = student_hidden.size(0);
  const int64_t chunk_tokens = ChunkTokens(student_head);
  for (int64_t first = 0; first < num_tokens; first += chunk_tokens) {
    const int64_t count = std::min(chunk_tokens, num_tokens - first);
    const at::Tensor hidden = student_hidden.narrow(0, first, count);
    at::Tensor student = LogSoftmax(hidden, student_head);
    at::Tensor teacher = LogSoftmax(teacher_hidden.narrow(0, first, count), teacher_head);
    const at::Tensor probability = teacher.exp();
    result.sum.add_(at::dot(probability.view({-1}), teacher.sub_(student).view({-1})));
    teacher = at::Tensor();
    // With respect to the logits: softmax(student) - softmax(teacher).
    const at::Tensor logits_gradient =
        student.exp_().sub_(probability).to(student_hidden.scalar_type());
    at::Tensor hidden_gradient = result.hidden_gradient.narrow(0, first, count);
    at::mm_out(hidden_gradient, logits_gradient, student_head);
    if (with_head_gradient) result.head_gradient.add_(logits_gradient.t().mm(hidden));
  }
  result.hidden_gradient.mul_(gradient_scale);
  if (with_head_gradient) result.head_gradient.mul_(gradient_scale);
  return result;
}

at::Tensor SumOfNegativeLogLikelihoods(const at::Tensor& hidden, const at::Tensor& head,
                                       const at::Tensor& labels) {
  const at::NoGradGuard no_gradient;
  at::Tensor sum = at::zeros({1}, hidden.options().dtype(at::kDouble));
  const int64_t num_tokens = hidden.size(0);
  const int64_t chunk_tokens = ChunkTokens(head);
  for (int64_t first = 0; first < num_tokens; first += chunk_tokens) {
    const int64_t count = std::min(chunk_tokens, num_tokens - first);
    const at::Tensor logprobs = LogSoftmax(hidden.narrow(0, first, count), head);
    sum.sub_(logprobs.gather(1, labels.narrow(0, first, count).unsqueeze(1)).to(at::kDouble).sum());
  }
  return sum;
}

at::Tensor AddDistillationGradients(const Decoder& teacher, Student& student,
                                    const RotaryTables& rotary, const at::Tensor& ids,
                                    double weight, const DistillationOptions& options) {
  const int64_t num_tokens = ids.numel();
  const bool with_hidden = options.hidden_loss > 0;
  const Decoder::Tables teacher_tables = teacher.CurrentTables();
  const TeacherStates target = RunTeacher(teacher, teacher_tables, rotary, ids, with_hidden);

  const Decoder::Tables tables = student.CurrentTables();
  const at::Tensor flat_ids = ids.reshape({-1});
  LayerStack stack(student, rotary, ids.size(0), options.checkpoint_activations);
  stack.Forward(tables.embedding.index_select(0, flat_ids));
  const int num_layers = student.config().num_layers;
  const at::Tensor last_state = stack.state(num_layers - 1).detach().requires_grad_(true);
  at::Tensor normed;
  {
    const at::AutoGradMode mode(true);
    normed = student.RunFinalNorm(last_state);
  }

  const double scale = weight / static_cast<double>(num_tokens);
  const DivergenceResult divergence =
      Divergence(normed.detach(), tables.head, target.last, teacher_tables.head, scale,
                 student.trains_tables());
  at::Tensor hidden_loss = at::zeros({1}, divergence.sum.options());
  std::vector<at::Tensor> extra;
  if (with_hidden) {
    const at::NoGradGuard no_gradient;
    for (int layer = 0; layer < num_layers; ++layer) {
      const at::Tensor& wanted = target.layers[static_cast<size_t>(layer)];
      const at::Tensor difference = stack.state(layer).detach().to(at::kFloat) - wanted;
      const at::Tensor energy = wanted.to(at::kFloat).square().sum().clamp_min_(1e-20);
      hidden_loss.add_(difference.square().sum() / energy / num_layers);
      const double factor = 2 * weight * options.hidden_loss / num_layers;
      extra.push_back((difference * (factor / energy)).to(wanted.scalar_type()));
    }
  }

  torch::autograd::backward({normed}, {divergence.hidden_gradient});
  at::Tensor gradient = last_state.grad();
  if (with_hidden) gradient = gradient + extra.back();
  gradient = stack.Backward(gradient, extra);
  if (student.trains_tables()) {
    const at::NoGradGuard no_gradient;
    const at::Tensor embedding_gradient =
        at::zeros(tables.embedding.sizes(), divergence.sum.options())
            .index_add_(0, flat_ids, gradient.to(at::kFloat));
    student.AddTableGradients(embedding_gradient, divergence.head_gradient);
  }
  return at::cat({divergence.sum / num_tokens, hidden_loss});
}

}  // namespace ultrasketch
