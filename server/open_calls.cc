#include "server/open_calls.h"

#include <malloc.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "server/status.h"

namespace ultrasketch {
namespace {

// After so long without calls the heap's free pages go back to the system.
constexpr absl::Duration kTrimDelay = absl::Seconds(5);

}  // namespace

OpenCalls::OpenCalls(CallLimits limits, prometheus::Gauge& unread_bytes)
    : limits_(std::move(limits)), unread_bytes_(unread_bytes), thread_([this] { Run(); }) {}

OpenCalls::~OpenCalls() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

void OpenCalls::Add(OpenCall* call, bool is_waited_for) {
  absl::MutexLock lock(&mutex_);
  calls_.emplace(call, is_waited_for);
  if (is_waited_for) ++num_waited_for_;
}

void OpenCalls::Remove(OpenCall* call) {
  absl::MutexLock lock(&mutex_);
  const auto found = calls_.find(call);
  if (found == calls_.end()) return;
  if (found->second) --num_waited_for_;
  calls_.erase(found);
}

absl::Status OpenCalls::Admit(const std::string& client) {
  absl::MutexLock lock(&mutex_);
  if (num_requests_ >= limits_.max_requests) {
    return TryAgainLater(absl::ResourceExhaustedError(absl::StrCat(
                             "the server is full: ", num_requests_, " requests are open")),
                         kServerFullReason,
                         SpreadRetryDelay(num_requests_, drain_rate_.PerSecond(), num_refused_++));
  }
  int32_t& num_of_client = num_requests_of_client_[client];
  if (num_of_client >= limits_.max_requests_per_client) {
    return TryAgainLater(absl::ResourceExhaustedError(absl::StrCat(
                             "this client has ", num_of_client, " requests open, at most ",
                             limits_.max_requests_per_client, " may be")),
                         kClientFullReason, kUnknownRetryDelay);
  }
  ++num_of_client;
  ++num_requests_;
  return absl::OkStatus();
}

void OpenCalls::Release(const std::string& client) {
  absl::MutexLock lock(&mutex_);
  const auto found = num_requests_of_client_.find(client);
  if (--found->second == 0) num_requests_of_client_.erase(found);
  --num_requests_;
  drain_rate_.Observe(absl::Now(), 1, num_requests_);
}

absl::Status OpenCalls::CheckUnreadAnswers() const {
  const int64_t num_bytes = num_answer_bytes_;
  if (num_bytes < limits_.max_unread_answer_bytes) return absl::OkStatus();
  return TryAgainLater(absl::ResourceExhaustedError(absl::StrCat(
                           "clients have not read ", num_bytes, " bytes of answers, at most ",
                           limits_.max_unread_answer_bytes, " may wait")),
                       kUnreadAnswersReason, kUnknownRetryDelay);
}

bool OpenCalls::AwaitNone(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithDeadline(absl::Condition(this, &OpenCalls::IsNone), deadline);
}

void OpenCalls::Run() {
  const absl::Duration interval =
      std::clamp(limits_.max_unread_time / 4, absl::Milliseconds(10), absl::Seconds(1));
  absl::Time last_busy = absl::InfiniteFuture();  // no call since the last trim
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), interval)) return;
      const absl::Time now = absl::Now();
      for (const auto& [call, is_waited_for] : calls_) call->CheckReader(now);
      if (!calls_.empty()) last_busy = now;
      if (now < last_busy + kTrimDelay) continue;
    }
    last_busy = absl::InfiniteFuture();
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
  }
}

}  // namespace ultrasketch
