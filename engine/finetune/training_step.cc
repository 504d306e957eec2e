#include "engine/finetune/training_step.h"

#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "engine/base/check.h"
#include "engine/base/status.h"

#ifdef ULTRASKETCH_TORCH_CUDA
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace ultrasketch {
namespace {

// Libraries choose their kernels and workspaces in the first steps.
constexpr int64_t kStepsBeforeCapture = 3;

}  // namespace

#ifdef ULTRASKETCH_TORCH_CUDA
struct TrainingStep::Graph {
  at::cuda::CUDAGraph graph;
};
#else
struct TrainingStep::Graph {};
#endif

TrainingStep::TrainingStep(const Decoder& teacher, Student& student,
                           const TrainingStepOptions& options)
    : teacher_(teacher),
      student_(student),
      options_(options),
      rotary_(student.MakeRotaryTables(options.window_tokens)) {
  US_CHECK(options.accumulation >= 1 && options.num_windows % options.accumulation == 0);
  const at::Device device = student.options().device;
  ids_ = at::zeros({options.num_windows, options.window_tokens},
                   at::TensorOptions().dtype(at::kLong).device(device));
  values_ = at::zeros({3}, at::TensorOptions().dtype(at::kFloat).device(device));
  if (!device.is_cuda()) {
    graph_refusal_ = "there is no CUDA device";
  } else if (options.average) {
    graph_refusal_ = "several processes take part";
  } else if (options.cuda_graph == CudaGraphUse::kOff) {
    graph_refusal_ = "it was not asked for";
  }
}

TrainingStep::~TrainingStep() = default;

void TrainingStep::Compute() {
  ParameterStore& parameters = student_.parameters();
  parameters.gradients().zero_();
  const int64_t part = options_.num_windows / options_.accumulation;
  const double weight = 1.0 / static_cast<double>(options_.accumulation);
  at::Tensor losses;
  for (int64_t index = 0; index < options_.accumulation; ++index) {
    const at::Tensor part_losses =
        AddDistillationGradients(teacher_, student_, rotary_, ids_.narrow(0, index * part, part),
                                 weight, options_.distillation);
    losses = losses.defined() ? losses + part_losses : part_losses;
  }
  const at::NoGradGuard no_gradient;
  if (options_.average) {
    at::Tensor gradients = parameters.gradients();
    options_.average(gradients);
  }
  const at::Tensor norm = parameters.Step(options_.adam);
  student_.ClampLatents();
  values_.copy_(at::cat({losses * weight, norm}));
}

absl::Status TrainingStep::Capture() {
#ifdef ULTRASKETCH_TORCH_CUDA
  auto graph = std::make_unique<Graph>();
  c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream();
  stream.synchronize();
  bool capturing = false;
  std::string failure;
  try {
    graph->graph.capture_begin();
    capturing = true;
    Compute();
    capturing = false;
    graph->graph.capture_end();
  } catch (const std::exception& error) {
    failure = error.what();
    try {
      if (capturing) graph->graph.capture_end();
    } catch (const std::exception&) {  // what has failed is known already
    }
  }
  if (!failure.empty()) {
    return absl::InternalError(absl::StrCat("the step could not be captured as a CUDA graph: ",
                                            failure.substr(0, failure.find('\n'))));
  }
  graph_ = std::move(graph);
  return absl::OkStatus();
#else
  return absl::UnimplementedError("built without CUDA");
#endif
}

absl::StatusOr<StepResult> TrainingStep::Run(
    const at::Tensor& ids, const std::array<double, kNumParameterGroups>& learning_rates) {
  US_CHECK(ids.sizes() == ids_.sizes());
  const at::Tensor rates = at::empty({kNumParameterGroups}, at::TensorOptions().dtype(at::kFloat));
  for (size_t group = 0; group < learning_rates.size(); ++group) {
    rates.data_ptr<float>()[group] = static_cast<float>(learning_rates[group]);
  }
  student_.parameters().learning_rates().copy_(rates);
  ids_.copy_(ids);
#ifdef ULTRASKETCH_TORCH_CUDA
  if (graph_refusal_.empty() && graph_ == nullptr && num_eager_steps_ >= kStepsBeforeCapture) {
    const absl::Status captured = Capture();
    if (!captured.ok()) {
      if (options_.cuda_graph == CudaGraphUse::kOn) return captured;
      graph_refusal_ = std::string(captured.message());
    }
  }
  if (graph_ != nullptr) {
    graph_->graph.replay();
    return StepResult{values_};
  }
#endif
  Compute();
  ++num_eager_steps_;
  return StepResult{values_};
}

}  // namespace ultrasketch
