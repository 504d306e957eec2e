#include "server/refusal_pacer.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"

namespace ultrasketch {
namespace {

// The allowance of so long is the most that is saved up.
constexpr absl::Duration kSaved = absl::Milliseconds(100);

double MostAllowance(const RefusalPacing& pacing) {
  return std::max(1.0, pacing.per_second * absl::ToDoubleSeconds(kSaved));
}

}  // namespace

RefusalPacer::RefusalPacer(const RefusalPacing& pacing)
    : pacing_(pacing), allowance_(MostAllowance(pacing)), thread_([this] { Run(); }) {}

RefusalPacer::~RefusalPacer() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

void RefusalPacer::Add(std::shared_ptr<RefusedCall> call) {
  if (pacing_.max_pause > absl::ZeroDuration()) {
    absl::MutexLock lock(&mutex_);
    const absl::Time now = absl::Now();
    RefillAllowance(now);
    const bool may_pass = waiting_.empty() && allowance_ >= 1;
    if (may_pass) {
      allowance_ -= 1;
    } else if (!stopping_ && waiting_.size() < pacing_.max_waiting) {
      waiting_.push_back({now + pacing_.max_pause, std::move(call)});
      return;
    }
  }
  call->AnswerRefusal();
}

void RefusalPacer::RefillAllowance(absl::Time now) {
  if (now <= last_refill_) return;
  allowance_ =
      std::min(MostAllowance(pacing_),
               allowance_ + pacing_.per_second * absl::ToDoubleSeconds(now - last_refill_));
  last_refill_ = now;
}

std::vector<std::shared_ptr<RefusedCall>> RefusalPacer::TakeDue(absl::Time now) {
  RefillAllowance(now);
  std::vector<std::shared_ptr<RefusedCall>> due;
  while (!waiting_.empty()) {
    if (!stopping_ && waiting_.front().due > now) {
      if (allowance_ < 1) break;
      allowance_ -= 1;
    }
    due.push_back(std::move(waiting_.front().call));
    waiting_.pop_front();
  }
  return due;
}

void RefusalPacer::Run() {
  while (true) {
    std::vector<std::shared_ptr<RefusedCall>> due;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &RefusalPacer::HasNews));
      if (waiting_.empty()) return;
      mutex_.AwaitWithTimeout(absl::Condition(&stopping_), kInterval);
      due = TakeDue(absl::Now());
    }
    for (const std::shared_ptr<RefusedCall>& call : due) call->AnswerRefusal();
  }
}

}  // namespace ultrasketch
