// The kernels of a step, launched together at its end: as a CUDA graph when the same step has come
// before.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_STEP_RECORDER_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_STEP_RECORDER_H_

#include <cuda_runtime_api.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <vector>

#include "absl/container/node_hash_map.h"

#include "engine/backends/cuda/cuda_device.h"
#include "engine/backends/cuda/stage_timer.h"
#include "engine/backends/step_stages.h"

namespace ultrasketch::cuda {

// What a launch depends on, as a number: an address, a count, the bits of a float.
class LaunchPart {
 public:
  LaunchPart(const void* address)  // NOLINT(google-explicit-constructor)
      : value_(std::bit_cast<uintptr_t>(address)) {}
  LaunchPart(int64_t number)  // NOLINT(google-explicit-constructor)
      : value_(static_cast<uint64_t>(number)) {}
  LaunchPart(int number)  // NOLINT(google-explicit-constructor)
      : LaunchPart(int64_t{number}) {}
  LaunchPart(float number)  // NOLINT(google-explicit-constructor)
      : value_(std::bit_cast<uint32_t>(number)) {}
  uint64_t value() const { return value_; }

 private:
  uint64_t value_;
};

// One thread at a time.
//
// A decoding step of a model is some hundred launches that differ from those of the step before in
// nothing but what their inputs hold: launched one by one they take the host longer than the
// device. Steps are told apart by the parts of all their launches. Addresses stand for what is
// there: when the device's allocations change, everything is forgotten.
//
// While a step is recorded it is compared with the one before, of which it keeps what is the same:
// the device waits for the recording.
class StepRecorder {
 public:
  explicit StepRecorder(CudaDevice& device) : device_(device) {}
  ~StepRecorder() { Forget(); }
  StepRecorder(const StepRecorder&) = delete;
  StepRecorder& operator=(const StepRecorder&) = delete;

  // Forgets launches that were recorded and not run.
  void Begin();

  // `launch(stream)` is a pure function of `parts`, in which the first tells operations apart;
  // `call`, of static storage, names it in errors; `stage`, a function of `parts` too, is what its
  // time counts as. A copy of `launch` is kept unless it is known.
  template <typename Function>
  void Add(const char* call, StepStage stage, std::initializer_list<LaunchPart> parts,
           const Function& launch) {
    if (!IsKnown(parts)) AddNew(call, stage, parts, launch);
  }

  // Launches what was recorded, and begins again. A step that `repeats` becomes a graph when it
  // comes the second time; where `timer` wants to know its stages, another one that has events
  // between them: every now and then one is made (kStepsBetweenTimedGraphs), else the timer gets
  // nothing. Errors are the device's to report.
  void Run(bool repeats, StageTimer& timer);

 private:
  struct Launch {
    const char* call;
    StepStage stage;
    std::function<cudaError_t(cudaStream_t)> launch;
    size_t num_parts;
  };
  // Null for a step that has come once, or cannot be captured.
  struct Known {
    cudaGraphExec_t graph = nullptr;
    bool tried = false;
    cudaGraphExec_t timed_graph = nullptr;
    std::vector<StepStage> marks;  // of timed_graph: see StageTimer
  };

  // Whether the next launch of the step before is the same, which is then this step's, too.
  bool IsKnown(std::initializer_list<LaunchPart> parts);
  void AddNew(const char* call, StepStage stage, std::initializer_list<LaunchPart> parts,
              std::function<cudaError_t(cudaStream_t)> launch);
  void RunLaunches(StageTimer& timer);
  // Null when it cannot be captured. With marks when `timer` is not null.
  cudaGraphExec_t Capture(StageTimer* timer);
  // Whether the step's timed graph is there, or could be made.
  bool PrepareTimedGraph(Known& known, StageTimer& timer);
  // The slot of the recorded step, with its graph when this is the second time.
  Known& Find();
  void Forget();
  void ForgetGraphs();

  CudaDevice& device_;
  // This step's first num_launches_ launches and num_parts_ parts; what follows is of the step
  // before, as long as all so far has been the same.
  std::vector<Launch> launches_;
  std::vector<uint64_t> signature_;
  size_t num_launches_ = 0;
  size_t num_parts_ = 0;
  absl::node_hash_map<std::vector<uint64_t>, Known> known_;
  Known* last_ = nullptr;  // what launches_ are in known_; null: not looked up
  int64_t generation_ = 0;
  int64_t num_runs_ = 0;
  int64_t next_timed_graph_ = 0;  // the run from which on another one may be made
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_STEP_RECORDER_H_
