// The calls that are open: how many there may be, and how long a client may leave unread what it
// was sent.
//
// A client that does not read lets gRPC take some MiB of messages (its flow control windows and the
// socket's buffers), and then no more. What a call holds from there on is counted here: messages of
// a stream that wait behind the one that gRPC has, and answers of Tokenize and Detokenize, which
// can be far larger than what they answer.
#ifndef ULTRASKETCH_SERVER_OPEN_CALLS_H_
#define ULTRASKETCH_SERVER_OPEN_CALLS_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include <prometheus/gauge.h>

#include "engine/serving/engine_loop/drain_rate.h"
#include "server/refusal_pacer.h"

namespace ultrasketch {

struct CallLimits {
  // Calls that generate or score, waiting ones too, over all models. Further ones are
  // RESOURCE_EXHAUSTED. Those that are answered and whose client has not read the answer yet count
  // apart: as many again may be open, and a few more.
  int32_t max_requests = 4096;
  int32_t max_requests_per_client = 4096;
  // What waits to be read in a stream; beyond it the stream ends with SLOW_READER.
  int64_t max_unread_bytes = int64_t{16} << 20;
  // A message, or an answer, that a client leaves unread for longer ends the call.
  absl::Duration max_unread_time = absl::Minutes(2);
  // Answers of Tokenize and Detokenize that clients have not read yet, together; beyond it further
  // calls are RESOURCE_EXHAUSTED.
  int64_t max_unread_answer_bytes = int64_t{256} << 20;
  // When those that are RESOURCE_EXHAUSTED and may come again are answered.
  RefusalPacing refusals;
  // For tests: called as a call comes in, and before a message is written.
  std::function<void()> after_accept = nullptr;
  std::function<void()> before_write = nullptr;
};

// Since when a client has had something to read. Thread-safe.
class UnreadSince {
 public:
  void Begin() { nanoseconds_ = absl::GetCurrentTimeNanos(); }
  void End() { nanoseconds_ = 0; }
  bool IsLongerThan(absl::Duration duration, absl::Time now) const {
    const int64_t since = nanoseconds_;
    return since != 0 && now - absl::FromUnixNanos(since) >= duration;
  }

 private:
  std::atomic<int64_t> nanoseconds_ = 0;  // since the epoch; 0: nothing is unread
};

// As the rest of the server sees one call.
class OpenCall {
 public:
  virtual ~OpenCall() = default;
  // Called every now and then: ends the call if its client has not read for too long. Does not
  // block, and calls nothing of OpenCalls that takes its lock.
  virtual void CheckReader(absl::Time now) = 0;
};

// Thread-safe.
class OpenCalls {
 public:
  // `unread_bytes` outlives this.
  OpenCalls(CallLimits limits, prometheus::Gauge& unread_bytes);
  ~OpenCalls();
  OpenCalls(const OpenCalls&) = delete;
  OpenCalls& operator=(const OpenCalls&) = delete;

  const CallLimits& limits() const { return limits_; }

  // The call is open until Remove. `is_waited_for`: by AwaitNone.
  void Add(OpenCall* call, bool is_waited_for);
  void Remove(OpenCall* call);

  // Takes a place for a request of `client` until Release. RESOURCE_EXHAUSTED, with when to try
  // again, when there is none.
  absl::Status Admit(const std::string& client);
  // The request is about to be answered: who has read the answer may come with the next one.
  void Answer(const std::string& client);
  void Release(const std::string& client, bool is_answered);

  // False when the deadline came first.
  bool AwaitNone(absl::Time deadline);

  // What clients have not read yet of streams: more, or less with a negative number. No lock.
  void AddUnreadBytes(int64_t num_bytes) {
    unread_bytes_.Increment(static_cast<double>(num_bytes));
  }

  // The same for answers of Tokenize and Detokenize, and whether there may be more of them.
  void AddUnreadAnswer(int64_t num_bytes) {
    num_answer_bytes_ += num_bytes;
    AddUnreadBytes(num_bytes);
  }
  absl::Status CheckUnreadAnswers() const;

 private:
  bool IsNone() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return num_waited_for_ == 0; }
  void Run();

  const CallLimits limits_;
  prometheus::Gauge& unread_bytes_;
  std::atomic<int64_t> num_answer_bytes_ = 0;

  absl::Mutex mutex_;
  absl::flat_hash_map<OpenCall*, bool> calls_ ABSL_GUARDED_BY(mutex_);  // is_waited_for
  int64_t num_waited_for_ ABSL_GUARDED_BY(mutex_) = 0;
  struct Requests {
    int64_t unanswered = 0;
    int64_t answered = 0;
  };
  // Why a request is one too many, for `whose`; else empty.
  static std::string WhyFull(const Requests& requests, int64_t limit, std::string_view whose);

  // Of requests. Taken last: Answer is called with a call's own mutex held, CheckReader with
  // mutex_.
  absl::Mutex admission_mutex_;
  Requests requests_ ABSL_GUARDED_BY(admission_mutex_);
  std::map<std::string, Requests> requests_of_client_ ABSL_GUARDED_BY(admission_mutex_);
  DrainRate drain_rate_ ABSL_GUARDED_BY(admission_mutex_);
  uint64_t num_refused_ ABSL_GUARDED_BY(admission_mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_OPEN_CALLS_H_
