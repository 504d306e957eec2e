// When refusals are answered: at once as long as they are few, and late and many at a time when
// clients come again and again without waiting.
//
// Refusing a call costs the server, and a client on the same machine, tens of microseconds, most of
// it in gRPC. Clients that try again as soon as they are refused make as many calls as there is
// time for, and take it from those who were admitted. The pause bounds how often each of them
// comes; answers that leave together share reads, writes and wake-ups on both sides.
#ifndef ULTRASKETCH_SERVER_REFUSAL_PACER_H_
#define ULTRASKETCH_SERVER_REFUSAL_PACER_H_

#include <cstddef>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace ultrasketch {

// A call that is refused and has not been answered.
class RefusedCall {
 public:
  virtual ~RefusedCall() = default;
  // Once, on any thread. Does not block.
  virtual void AnswerRefusal() = 0;
};

struct RefusalPacing {
  // Refusals that are answered without a pause, a second. So few cost less than a tenth of one
  // core.
  double per_second = 1000;
  // The longest pause, but for kInterval more. Zero: every refusal is answered at once.
  absl::Duration max_pause = absl::Milliseconds(30);
  // Refusals that wait at a time, each with its request in memory; further ones are answered at
  // once.
  size_t max_waiting = 4096;
};

// Thread-safe. Destruction answers what still waits.
class RefusalPacer {
 public:
  // What waits is looked at so often.
  static constexpr absl::Duration kInterval = absl::Milliseconds(10);

  explicit RefusalPacer(const RefusalPacing& pacing);
  ~RefusalPacer();
  RefusalPacer(const RefusalPacer&) = delete;
  RefusalPacer& operator=(const RefusalPacer&) = delete;

  // Answers the call, now or later, and lets go of it.
  void Add(std::shared_ptr<RefusedCall> call) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Waiting {
    absl::Time due;
    std::shared_ptr<RefusedCall> call;
  };

  void Run() ABSL_LOCKS_EXCLUDED(mutex_);
  // What is to be answered now.
  std::vector<std::shared_ptr<RefusedCall>> TakeDue(absl::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RefillAllowance(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HasNews() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return stopping_ || !waiting_.empty(); }

  const RefusalPacing pacing_;
  absl::Mutex mutex_;
  std::deque<Waiting> waiting_ ABSL_GUARDED_BY(mutex_);  // in order of arrival
  // Refusals that may be answered without a pause now, as of last_refill_.
  double allowance_ ABSL_GUARDED_BY(mutex_);
  absl::Time last_refill_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_REFUSAL_PACER_H_
