// Hands an engine loop's events to their sinks on a thread of its own, so that what sinks do (text
// into messages, messages into sockets) takes no time of the engine's.
#ifndef ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_DELIVERY_H_
#define ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_DELIVERY_H_

#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"

#include "engine/base/mutex.h"
#include "engine/serving/engine_loop/engine_core.h"
#include "engine/serving/engine_loop/engine_loop.h"

namespace ultrasketch {

// Events wait in memory until their sinks have taken them: no more than the completions themselves.
// Small deltas of a completion that wait together become one. Thread-safe. Destruction stops.
class Delivery {
 public:
  // Deltas other than a completion's first are delivered at least `interval` after those before.
  // `on_finished` is called on the delivery's thread with the requests whose last event has been
  // delivered, after their sinks were released.
  Delivery(absl::Duration interval, std::function<void(const std::vector<RequestId>&)> on_finished);
  ~Delivery();
  Delivery(const Delivery&) = delete;
  Delivery& operator=(const Delivery&) = delete;

  // Delivers the events behind those before, in order within each completion. Wakes the thread if
  // it sleeps and there is something to deliver now, once however many events there are.
  void Push(std::vector<EngineEvent> events) ABSL_LOCKS_EXCLUDED(mutex_);

  // Delivers what was pushed and ends the thread; nothing may be pushed afterwards. Once, and not
  // from a sink.
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);

  bool IsThisThread() const { return thread_.get_id() == std::this_thread::get_id(); }

 private:
  void Run();
  // Waits until there is something to deliver, and takes it; nothing when it is over. Deltas before
  // `next` wait until then.
  std::vector<EngineEvent> TakeEvents(absl::Time next) ABSL_LOCKS_EXCLUDED(mutex_);

  const absl::Duration interval_;
  const std::function<void(const std::vector<RequestId>&)> on_finished_;
  Mutex mutex_;
  std::vector<EngineEvent> events_ ABSL_GUARDED_BY(mutex_);
  bool is_urgent_ ABSL_GUARDED_BY(mutex_) = false;  // some of events_ does not wait
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_DELIVERY_H_
