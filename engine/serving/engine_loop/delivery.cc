#include "engine/serving/engine_loop/delivery.h"

#include <iterator>
#include <utility>

namespace ultrasketch {

Delivery::Delivery(std::function<void(const std::vector<RequestId>&)> on_finished)
    : on_finished_(std::move(on_finished)), thread_([this] { Run(); }) {}

Delivery::~Delivery() {
  if (thread_.joinable()) Stop();
}

void Delivery::Push(std::vector<EngineEvent> events) {
  if (events.empty()) return;
  MutexLock lock(mutex_);
  if (events_.empty()) {
    events_ = std::move(events);
  } else {
    events_.insert(events_.end(), std::make_move_iterator(events.begin()),
                   std::make_move_iterator(events.end()));
  }
}

void Delivery::Stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  thread_.join();
}

void Delivery::Run() {
  while (true) {
    std::vector<EngineEvent> events;
    {
      MutexLock lock(mutex_);
      mutex_.Await(
          [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return !events_.empty() || stopping_; });
      if (events_.empty()) return;
      events.swap(events_);
    }
    // Without the lock: sinks may call Submit and Cancel.
    std::vector<RequestId> finished;
    for (EngineEvent& event : events) {
      if (event.result == nullptr) {
        event.sink->OnDelta(std::move(event.delta));
      } else {
        event.sink->OnFinish(std::move(*event.result));
      }
      event.sink.reset();
      if (event.finished_request.has_value()) finished.push_back(*event.finished_request);
    }
    if (!finished.empty()) on_finished_(finished);
  }
}

}  // namespace ultrasketch
