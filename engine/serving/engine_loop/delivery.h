// Hands an engine loop's events to their sinks on a thread of its own, so that what sinks do (text
// into messages, messages into sockets) takes no time of the engine's.
#ifndef ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_DELIVERY_H_
#define ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_DELIVERY_H_

#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"

#include "engine/base/mutex.h"
#include "engine/serving/engine_loop/engine_core.h"
#include "engine/serving/engine_loop/engine_loop.h"

namespace ultrasketch {

// Events wait in memory until their sinks have taken them: no more than the completions themselves.
// Thread-safe. Destruction stops.
class Delivery {
 public:
  // `on_finished` is called on the delivery's thread with the requests whose last event has been
  // delivered, after their sinks were released.
  explicit Delivery(std::function<void(const std::vector<RequestId>&)> on_finished);
  ~Delivery();
  Delivery(const Delivery&) = delete;
  Delivery& operator=(const Delivery&) = delete;

  // Delivers the events, in order, behind those before. Wakes the thread if it sleeps, once however
  // many events there are.
  void Push(std::vector<EngineEvent> events) ABSL_LOCKS_EXCLUDED(mutex_);

  // Delivers what was pushed and ends the thread; nothing may be pushed afterwards. Once, and not
  // from a sink.
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);

  bool IsThisThread() const { return thread_.get_id() == std::this_thread::get_id(); }

 private:
  void Run();

  const std::function<void(const std::vector<RequestId>&)> on_finished_;
  Mutex mutex_;
  std::vector<EngineEvent> events_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_DELIVERY_H_
