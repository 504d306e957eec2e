#include "engine/backends/cuda/step_recorder.h"

#include <algorithm>
#include <utility>

namespace ultrasketch::cuda {
namespace {

// Shapes of steps that are remembered. A graph of a model with 32 layers takes about a megabyte.
constexpr size_t kMaxKnown = 128;

// To make a graph takes the host about a millisecond: where shapes of steps change often, most of
// the samples are given up.
constexpr int64_t kStepsBetweenTimedGraphs = 1024;

}  // namespace

void StepRecorder::Begin() {
  num_launches_ = 0;
  num_parts_ = 0;
  if (generation_ != device_.generation()) Forget();
}

bool StepRecorder::IsKnown(std::initializer_list<LaunchPart> parts) {
  if (num_launches_ >= launches_.size() || launches_[num_launches_].num_parts != parts.size()) {
    return false;
  }
  const bool is_same =
      std::equal(parts.begin(), parts.end(), signature_.begin() + static_cast<int64_t>(num_parts_),
                 [](const LaunchPart& part, uint64_t known) { return part.value() == known; });
  if (!is_same) return false;
  ++num_launches_;
  num_parts_ += parts.size();
  return true;
}

void StepRecorder::AddNew(const char* call, StepStage stage,
                          std::initializer_list<LaunchPart> parts,
                          std::function<cudaError_t(cudaStream_t)> launch) {
  last_ = nullptr;
  launches_.resize(num_launches_);
  signature_.resize(num_parts_);
  for (const LaunchPart& part : parts) signature_.push_back(part.value());
  launches_.push_back({call, stage, std::move(launch), parts.size()});
  num_launches_ = launches_.size();
  num_parts_ = signature_.size();
}

void StepRecorder::Run(bool repeats, StageTimer& timer) {
  ++num_runs_;
  // Allocations since the step began are this step's own.
  if (generation_ != device_.generation()) ForgetGraphs();
  if (num_launches_ < launches_.size()) {
    last_ = nullptr;
    launches_.resize(num_launches_);
    signature_.resize(num_parts_);
  }
  if (repeats && !launches_.empty()) {
    Known& known = Find();
    if (known.graph == nullptr) {
      RunLaunches(timer);
    } else if (timer.is_wanted() && PrepareTimedGraph(known, timer)) {
      timer.SetMarks(known.marks);
      device_.Check(cudaGraphLaunch(known.timed_graph, device_.stream()), "cudaGraphLaunch");
    } else {
      timer.Abandon();
      device_.Check(cudaGraphLaunch(known.graph, device_.stream()), "cudaGraphLaunch");
    }
  } else {
    RunLaunches(timer);
  }
  num_launches_ = 0;
  num_parts_ = 0;
}

StepRecorder::Known& StepRecorder::Find() {
  if (last_ == nullptr) {
    if (known_.size() >= kMaxKnown) ForgetGraphs();
    const auto [entry, is_new] = known_.try_emplace(signature_);
    last_ = &entry->second;
    if (is_new) return *last_;
  }
  if (!last_->tried) {
    last_->graph = Capture(/*timer=*/nullptr);
    last_->tried = true;
  }
  return *last_;
}

bool StepRecorder::PrepareTimedGraph(Known& known, StageTimer& timer) {
  if (timer.has_marks()) return false;  // of a part of the step that ran before
  if (known.timed_graph != nullptr) return true;
  if (num_runs_ < next_timed_graph_) return false;
  next_timed_graph_ = num_runs_ + kStepsBetweenTimedGraphs;
  timer.Reserve(launches_.size() + 1);
  if (!timer.is_wanted()) return false;
  cudaGraphExec_t graph = Capture(&timer);
  if (graph != nullptr && !timer.is_wanted()) {  // without some of its marks
    static_cast<void>(cudaGraphExecDestroy(graph));
    graph = nullptr;
  }
  known.timed_graph = graph;
  known.marks = timer.marks();
  return graph != nullptr;
}

void StepRecorder::RunLaunches(StageTimer& timer) {
  if (timer.is_wanted()) timer.Reserve(launches_.size() + 1);
  StepStage stage = StepStage::kOther;
  for (const Launch& launch : launches_) {
    if (timer.is_wanted() && launch.stage != stage) {
      stage = launch.stage;
      timer.Mark(stage, /*is_captured=*/false);
    }
    device_.Check(launch.launch(device_.stream()), launch.call);
  }
  if (timer.is_wanted()) timer.Mark(StepStage::kOther, /*is_captured=*/false);
}

cudaGraphExec_t StepRecorder::Capture(StageTimer* timer) {
  if (cudaStreamBeginCapture(device_.stream(), cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return nullptr;
  }
  bool complete = true;
  StepStage stage = StepStage::kOther;
  for (const Launch& launch : launches_) {
    if (timer != nullptr && launch.stage != stage) {
      stage = launch.stage;
      timer->Mark(stage, /*is_captured=*/true);
    }
    complete = complete && launch.launch(device_.stream()) == cudaSuccess;
  }
  if (timer != nullptr) timer->Mark(StepStage::kOther, /*is_captured=*/true);
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
  ForgetGraphs();
  launches_.clear();
  signature_.clear();
}

void StepRecorder::ForgetGraphs() {
  device_.Activate();
  for (const auto& [signature, known] : known_) {
    for (const cudaGraphExec_t graph : {known.graph, known.timed_graph}) {
      if (graph != nullptr) static_cast<void>(cudaGraphExecDestroy(graph));
    }
  }
  known_.clear();
  last_ = nullptr;
  generation_ = device_.generation();
}

}  // namespace ultrasketch::cuda
