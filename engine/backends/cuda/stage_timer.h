// How long the stages of a step take on a CUDA device.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_STAGE_TIMER_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_STAGE_TIMER_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <optional>
#include <vector>

#include "engine/backends/cuda/cuda_device.h"
#include "engine/backends/step_stages.h"

namespace ultrasketch::cuda {

// Events where a step changes from one stage to another. One step at a time.
class StageTimer {
 public:
  explicit StageTimer(CudaDevice& device) : device_(device) {}
  ~StageTimer();
  StageTimer(const StageTimer&) = delete;
  StageTimer& operator=(const StageTimer&) = delete;

  // A new step, which is to be timed or not.
  void Begin(bool is_wanted);
  bool is_wanted() const { return is_wanted_; }
  // The step, or what is left of it, runs without marks.
  void Abandon() { is_wanted_ = false; }
  // Whether the step has marks already.
  bool has_marks() const { return !marks_.empty(); }

  // Before so many more marks, and before what is to be captured. Abandons the step when there are
  // no events to be had.
  void Reserve(size_t num_marks);
  // What is launched from now on belongs to `stage`: kOther at the end. `is_captured`: it becomes
  // part of a graph, whose marks these are.
  void Mark(StepStage stage, bool is_captured);
  // The step is a graph that was captured with these marks.
  void SetMarks(std::vector<StepStage> marks) { marks_ = std::move(marks); }
  const std::vector<StepStage>& marks() const { return marks_; }

  // After the stream has been waited for. Nullopt for a step that was not timed.
  std::optional<StageDurations> Read() const;

 private:
  CudaDevice& device_;
  bool is_wanted_ = false;
  std::vector<StepStage> marks_;     // from event i on
  std::vector<cudaEvent_t> events_;  // at least as many
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_STAGE_TIMER_H_
