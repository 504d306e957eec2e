#include "server/open_calls.h"

#include <malloc.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "engine/base/strings.h"
#include "server/status.h"

namespace ultrasketch {
namespace {

// After so long without calls the heap's free pages go back to the system.
constexpr absl::Duration kTrimDelay = absl::Seconds(5);

// So many answers beyond the limit of requests may be unread: a client that waits for each answer
// is ahead of gRPC's own end of the call by a few.
constexpr int64_t kMoreAnswered = 16;

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

std::string OpenCalls::WhyFull(const Requests& requests, int64_t limit, std::string_view whose) {
  if (requests.unanswered >= limit) {
    return absl::StrCat(A(whose), " has ", requests.unanswered, " requests open, at most ", limit,
                        " may be");
  }
  const int64_t max_answered = limit + kMoreAnswered;
  if (requests.answered < max_answered) return "";
  return absl::StrCat(A(whose), " has ", requests.answered, " answers that were not read, at most ",
                      max_answered, " may be");
}

absl::Status OpenCalls::Admit(const std::string& client) {
  absl::MutexLock lock(&admission_mutex_);
  if (std::string why = WhyFull(requests_, limits_.max_requests, "the server"); !why.empty()) {
    return TryAgainLater(absl::ResourceExhaustedError(why), kServerFullReason,
                         SpreadRetryDelay(requests_.unanswered + requests_.answered,
                                          drain_rate_.PerSecond(), num_refused_++));
  }
  Requests& of_client = requests_of_client_[client];
  if (std::string why = WhyFull(of_client, limits_.max_requests_per_client, "this client");
      !why.empty()) {
    return TryAgainLater(absl::ResourceExhaustedError(why), kClientFullReason, kUnknownRetryDelay);
  }
  ++of_client.unanswered;
  ++requests_.unanswered;
  return absl::OkStatus();
}

void OpenCalls::Answer(const std::string& client) {
  absl::MutexLock lock(&admission_mutex_);
  for (Requests* requests : {&requests_, &requests_of_client_.find(client)->second}) {
    --requests->unanswered;
    ++requests->answered;
  }
}

void OpenCalls::Release(const std::string& client, bool is_answered) {
  absl::MutexLock lock(&admission_mutex_);
  const auto found = requests_of_client_.find(client);
  for (Requests* requests : {&requests_, &found->second}) {
    --(is_answered ? requests->answered : requests->unanswered);
  }
  if (found->second.unanswered + found->second.answered == 0) requests_of_client_.erase(found);
  drain_rate_.Observe(absl::Now(), 1, requests_.unanswered + requests_.answered);
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
