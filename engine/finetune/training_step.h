// One step of training, launched op by op or replayed as a CUDA graph.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_TRAINING_STEP_H_
#define ULTRASKETCH_ENGINE_FINETUNE_TRAINING_STEP_H_

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include <ATen/core/Tensor.h>

#include "engine/finetune/distillation.h"

namespace ultrasketch {

enum class CudaGraphUse : uint8_t {
  kAuto,  // where it is possible
  kOn,    // an error where it is not
  kOff,
};

struct TrainingStepOptions {
  int64_t num_windows = 0;  // of a step, in this process
  int64_t window_tokens = 0;
  int64_t accumulation = 1;  // parts that a step's windows are taken in, one after the other
  DistillationOptions distillation;
  AdamOptions adam;
  // Sums gradients over processes and divides by their number; none: there is one process.
  std::function<void(at::Tensor& gradients)> average;
  CudaGraphUse cuda_graph = CudaGraphUse::kAuto;
};

// What a step says of itself: still on the device.
struct StepResult {
  at::Tensor values;  // [3], float: mean divergence, hidden loss, norm of the gradient
};

// Not thread-safe. Both models must outlive it.
class TrainingStep {
 public:
  TrainingStep(const Decoder& teacher, Student& student, const TrainingStepOptions& options);
  ~TrainingStep();
  TrainingStep(const TrainingStep&) = delete;
  TrainingStep& operator=(const TrainingStep&) = delete;

  // `ids` [num_windows, window_tokens], int64, on the CPU. `learning_rates` are those of the
  // parameter groups. Does not wait for the device: the result's values are those of this step
  // until the next call.
  absl::StatusOr<StepResult> Run(const at::Tensor& ids,
                                 const std::array<double, kNumParameterGroups>& learning_rates);

  // Why steps are not replayed from a graph, or "" when they are or will be.
  const std::string& graph_refusal() const { return graph_refusal_; }

 private:
  struct Graph;

  void Compute();
  absl::Status Capture();

  const Decoder& teacher_;
  Student& student_;
  const TrainingStepOptions options_;
  const RotaryTables rotary_;
  at::Tensor ids_;     // on the device: where every step's ids are put
  at::Tensor values_;  // [3]
  int64_t num_eager_steps_ = 0;
  std::string graph_refusal_;
  std::unique_ptr<Graph> graph_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_TRAINING_STEP_H_
