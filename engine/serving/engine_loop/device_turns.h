// Models that share a device take turns on it: one computes at a time, with all of its threads or
// multiprocessors, because two at once get less done than one after the other.
#ifndef ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_DEVICE_TURNS_H_
#define ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_DEVICE_TURNS_H_

#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"

#include "engine/base/mutex.h"

namespace ultrasketch {

// Fair queueing: of those that wait, the one that has had the device for the least time, divided by
// its weight, is next; time in which a member did not want the device is not saved up. A member
// keeps the device over several steps until it has had it for kQuantum, so that handing over (tens
// of microseconds) costs little where steps are short. Thread-safe.
class DeviceTurns : public std::enable_shared_from_this<DeviceTurns> {
 public:
  static constexpr absl::Duration kQuantum = absl::Milliseconds(2);

  class Member;
  // `weight` is positive: twice the weight gets twice the time when both want all of it. Members
  // keep the turns alive.
  std::unique_ptr<Member> Join(double weight = 1);

  // Members that wait for the device now.
  int num_waiting() const;

 private:
  Member* NextWaiting() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable Mutex mutex_;
  std::vector<Member*> waiting_ ABSL_GUARDED_BY(mutex_);  // in order of arrival
  Member* holder_ ABSL_GUARDED_BY(mutex_) = nullptr;
  double virtual_time_ ABSL_GUARDED_BY(mutex_) = 0;  // the holder's, at its last quantum
};

// One model's part. Used by one thread; gives the device back on destruction.
class DeviceTurns::Member {
 public:
  ~Member() { Release(); }
  Member(const Member&) = delete;
  Member& operator=(const Member&) = delete;

  // Before a step: returns when the device is this member's. At once when it is already.
  void Acquire();

  // After a step that took `duration`: hands the device over if the quantum is used up and somebody
  // waits who has had less.
  void EndStep(absl::Duration duration);

  // When there is nothing to compute. Does nothing when the device is another's.
  void Release();

 private:
  friend class DeviceTurns;
  Member(std::shared_ptr<DeviceTurns> turns, double weight);

  const std::shared_ptr<DeviceTurns> turns_;
  const double weight_;
  double virtual_time_ = 0;  // seconds on the device over weight; guarded by turns_->mutex_
  absl::Duration held_;      // in this turn
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_DEVICE_TURNS_H_
