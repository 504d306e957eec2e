#include "engine/serving/engine_loop/device_turns.h"

#include <algorithm>
#include <utility>

namespace ultrasketch {

std::unique_ptr<DeviceTurns::Member> DeviceTurns::Join(double weight) {
  return std::unique_ptr<Member>(new Member(shared_from_this(), weight));
}

int DeviceTurns::num_waiting() const {
  MutexLock lock(mutex_);
  return static_cast<int>(waiting_.size());
}

DeviceTurns::Member* DeviceTurns::NextWaiting() const {
  const auto next = std::min_element(
      waiting_.begin(), waiting_.end(),
      [](const Member* a, const Member* b) { return a->virtual_time_ < b->virtual_time_; });
  return next == waiting_.end() ? nullptr : *next;
}

DeviceTurns::Member::Member(std::shared_ptr<DeviceTurns> turns, double weight)
    : turns_(std::move(turns)), weight_(weight) {}

void DeviceTurns::Member::Acquire() {
  DeviceTurns& turns = *turns_;
  MutexLock lock(turns.mutex_);
  if (turns.holder_ == this) return;
  virtual_time_ = std::max(virtual_time_, turns.virtual_time_);
  turns.waiting_.push_back(this);
  turns.mutex_.Await([this, &turns]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(turns.mutex_) {
    return turns.holder_ == nullptr && turns.NextWaiting() == this;
  });
  std::erase(turns.waiting_, this);
  turns.holder_ = this;
  turns.virtual_time_ = virtual_time_;
  held_ = absl::ZeroDuration();
}

void DeviceTurns::Member::EndStep(absl::Duration duration) {
  MutexLock lock(turns_->mutex_);
  held_ += duration;
  virtual_time_ += absl::ToDoubleSeconds(duration) / weight_;
  if (held_ < kQuantum) return;
  const Member* next = turns_->NextWaiting();
  if (next != nullptr && next->virtual_time_ <= virtual_time_) {
    turns_->holder_ = nullptr;
  } else {
    held_ = absl::ZeroDuration();
    turns_->virtual_time_ = virtual_time_;
  }
}

void DeviceTurns::Member::Release() {
  MutexLock lock(turns_->mutex_);
  if (turns_->holder_ == this) turns_->holder_ = nullptr;
}

}  // namespace ultrasketch
