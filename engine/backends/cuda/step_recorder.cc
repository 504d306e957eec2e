#include "engine/backends/cuda/step_recorder.h"

namespace ultrasketch::cuda {
namespace {

// Shapes of steps that are remembered. A graph of a model with 32 layers takes about a megabyte.
constexpr size_t kMostKnown = 128;

}  // namespace

void StepRecorder::Begin() {
  launches_.clear();
  signature_.clear();
}

void StepRecorder::Add(const char* call, std::initializer_list<LaunchPart> parts,
                       std::function<cudaError_t(cudaStream_t)> launch) {
  for (const LaunchPart& part : parts) signature_.push_back(part.value());
  launches_.push_back({call, std::move(launch)});
}

void StepRecorder::Run(bool repeats) {
  if (launches_.empty()) return;
  if (!repeats) {
    RunLaunches();
    return;
  }
  if (generation_ != device_.generation() || known_.size() >= kMostKnown) Forget();
  const auto [entry, is_new] = known_.try_emplace(signature_);
  Known& known = entry->second;
  if (!is_new && !known.tried) {
    known.graph = Capture();
    known.tried = true;
  }
  if (known.graph != nullptr) {
    device_.Check(cudaGraphLaunch(known.graph, device_.stream()), "cudaGraphLaunch");
    Begin();
  } else {
    RunLaunches();
  }
}

void StepRecorder::RunLaunches() {
  for (const Launch& launch : launches_) {
    device_.Check(launch.launch(device_.stream()), launch.call);
  }
  Begin();
}

cudaGraphExec_t StepRecorder::Capture() {
  if (cudaStreamBeginCapture(device_.stream(), cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return nullptr;
  }
  bool complete = true;
  for (const Launch& launch : launches_) {
    complete = complete && launch.launch(device_.stream()) == cudaSuccess;
  }
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  // Ends the capture in any case.
  complete = cudaStreamEndCapture(device_.stream(), &graph) == cudaSuccess && complete;
  if (!complete || cudaGraphInstantiate(&executable, graph, 0) != cudaSuccess) {
    executable = nullptr;
  }
  if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
  // What went wrong will go wrong again, and be reported, when the launches run one by one.
  static_cast<void>(cudaGetLastError());
  return executable;
}

void StepRecorder::Forget() {
  device_.Activate();
  for (const auto& [signature, known] : known_) {
    if (known.graph != nullptr) static_cast<void>(cudaGraphExecDestroy(known.graph));
  }
  known_.clear();
  generation_ = device_.generation();
}

}  // namespace ultrasketch::cuda
