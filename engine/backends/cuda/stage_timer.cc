#include "engine/backends/cuda/stage_timer.h"

#include <utility>

namespace ultrasketch::cuda {

StageTimer::~StageTimer() {
  device_.Activate();
  for (const cudaEvent_t event : events_) static_cast<void>(cudaEventDestroy(event));
}

void StageTimer::Begin(bool is_wanted) {
  is_wanted_ = is_wanted;
  marks_.clear();
}

void StageTimer::Reserve(size_t num_marks) {
  while (events_.size() < marks_.size() + num_marks) {
    cudaEvent_t event = nullptr;
    if (cudaEventCreate(&event) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return Abandon();
    }
    events_.push_back(event);
  }
}

void StageTimer::Mark(StepStage stage, bool is_captured) {
  const cudaEvent_t event = events_[marks_.size()];
  const unsigned flags = is_captured ? cudaEventRecordExternal : cudaEventRecordDefault;
  if (cudaEventRecordWithFlags(event, device_.stream(), flags) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return Abandon();
  }
  marks_.push_back(stage);
}

std::optional<StageDurations> StageTimer::Read() const {
  if (!is_wanted_ || marks_.empty()) return std::nullopt;
  StageDurations durations;
  for (size_t i = 0; i + 1 < marks_.size(); ++i) {
    if (marks_[i] == StepStage::kOther) continue;
    float milliseconds = 0;
    if (cudaEventElapsedTime(&milliseconds, events_[i], events_[i + 1]) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return std::nullopt;
    }
    durations[marks_[i]] += absl::Milliseconds(milliseconds);
  }
  return durations;
}

}  // namespace ultrasketch::cuda
