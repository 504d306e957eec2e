#include "engine/serving/engine_loop/delivery.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/time/clock.h"

#include "engine/base/thread_name.h"

namespace ultrasketch {
namespace {

// A delta of so many tokens takes no more: what a message may hold is for the sinks to decide, and
// they cannot take a delta apart.
constexpr size_t kMaxMergedTokens = 16;

template <typename T>
void Append(std::vector<T>& target, std::vector<T> more) {
  target.insert(target.end(), std::make_move_iterator(more.begin()),
                std::make_move_iterator(more.end()));
}

// Deltas of a completion go into those before, and lose their sink. Those with log-probabilities,
// whose messages can be large, stay what they are.
void MergeDeltas(std::vector<EngineEvent>& events) {
  absl::flat_hash_map<std::pair<const GenerationSink*, int32_t>, GenerationDelta*> last;
  for (EngineEvent& event : events) {
    if (event.result != nullptr || !event.delta.logprobs.empty()) continue;
    const auto [found, is_new] =
        last.try_emplace({event.sink.get(), event.delta.completion}, &event.delta);
    if (is_new) continue;
    GenerationDelta& target = *found->second;
    if (target.token_ids.size() >= kMaxMergedTokens) {
      found->second = &event.delta;
      continue;
    }
    target.text += event.delta.text;
    Append(target.token_ids, std::move(event.delta.token_ids));
    event.sink.reset();
  }
}

}  // namespace

Delivery::Delivery(absl::Duration interval,
                   std::function<void(const std::vector<RequestId>&)> on_finished)
    : interval_(interval), on_finished_(std::move(on_finished)), thread_([this] { Run(); }) {}

Delivery::~Delivery() {
  if (thread_.joinable()) Stop();
}

void Delivery::Push(std::vector<EngineEvent> events) {
  if (events.empty()) return;
  const bool is_urgent = std::any_of(events.begin(), events.end(), [](const EngineEvent& event) {
    return event.is_first || event.result != nullptr;
  });
  MutexLock lock(mutex_);
  is_urgent_ = is_urgent_ || is_urgent;
  if (events_.empty()) {
    events_ = std::move(events);
  } else {
    Append(events_, std::move(events));
  }
}

void Delivery::Stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  thread_.join();
}

std::vector<EngineEvent> Delivery::TakeEvents(absl::Time next) {
  MutexLock lock(mutex_);
  if (absl::Now() < next) {
    mutex_.AwaitUntil(
        [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return is_urgent_ || stopping_; }, next);
  }
  mutex_.Await([this]()
                   ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return !events_.empty() || stopping_; });
  is_urgent_ = false;
  return std::exchange(events_, {});
}

void Delivery::Run() {
  NameThisThread("engine_delivery");
  absl::Time next = absl::InfinitePast();
  while (true) {
    // Without the lock: sinks may call Submit and Cancel.
    std::vector<EngineEvent> events = TakeEvents(next);
    if (events.empty()) return;
    if (interval_ > absl::ZeroDuration()) next = absl::Now() + interval_;
    MergeDeltas(events);
    std::vector<RequestId> finished;
    for (EngineEvent& event : events) {
      if (event.sink == nullptr) continue;
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
