#include "server/work_queue.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "engine/base/check.h"
#include "server/status.h"

namespace ultrasketch {

WorkQueue::WorkQueue(const WorkQueueOptions& options) : options_(options) {
  US_CHECK(options.num_threads >= 2);
  for (int i = 0; i < options.num_threads; ++i) threads_.emplace_back([this] { ThreadMain(); });
}

WorkQueue::~WorkQueue() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

absl::Status WorkQueue::Add(WorkClass work_class, const void* owner, size_t num_bytes,
                            std::function<void()> work) {
  {
    absl::MutexLock lock(&mutex_);
    ClassQueue& queue = classes_[static_cast<size_t>(work_class)];
    if (queue.items.size() >= options_.max_waiting) {
      return TryAgainLater(
          absl::ResourceExhaustedError(absl::StrCat("the queue is full: ", queue.items.size(),
                                                    " long texts wait for being tokenized")),
          kQueueFullReason, NextRetryDelay(queue));
    }
    if (!queue.items.empty() && queue.num_bytes + num_bytes > options_.max_waiting_bytes) {
      return TryAgainLater(
          absl::ResourceExhaustedError(absl::StrCat(
              "the queue is full: texts of ", queue.num_bytes, " bytes wait for being tokenized; ",
              "with this one's ", num_bytes, " they are more than ", options_.max_waiting_bytes)),
          kQueuedBytesFullReason, NextRetryDelay(queue));
    }
    queue.items.push_back({owner, num_bytes, std::move(work)});
    queue.num_bytes += num_bytes;
  }
  if (options_.after_add != nullptr) options_.after_add();
  return absl::OkStatus();
}

absl::Duration WorkQueue::NextRetryDelay(ClassQueue& queue) {
  return SpreadRetryDelay(static_cast<int64_t>(queue.items.size()), queue.drain_rate.PerSecond(),
                          queue.num_refused++);
}

std::function<void()> WorkQueue::Take(const void* owner) {
  absl::MutexLock lock(&mutex_);
  for (ClassQueue& queue : classes_) {
    const auto found = std::find_if(queue.items.begin(), queue.items.end(),
                                    [owner](const Item& item) { return item.owner == owner; });
    if (found == queue.items.end()) continue;
    std::function<void()> work = std::move(found->work);
    queue.num_bytes -= found->num_bytes;
    queue.items.erase(found);
    return work;
  }
  return nullptr;
}

int WorkQueue::NextClass() const {
  for (int i = 0; i < kNumClasses; ++i) {
    // Work of the last class can be long: one thread is never its.
    const int max_running = options_.num_threads - (i == kNumClasses - 1 ? 1 : 0);
    if (!classes_[i].items.empty() && classes_[i].num_running < max_running) return i;
  }
  return -1;
}

bool WorkQueue::IsEmpty() const {
  return std::all_of(classes_.begin(), classes_.end(),
                     [](const ClassQueue& queue) { return queue.items.empty(); });
}

bool WorkQueue::HasNews() const { return NextClass() >= 0 || (stopping_ && IsEmpty()); }

void WorkQueue::ThreadMain() {
  while (true) {
    Item item;
    size_t work_class = 0;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &WorkQueue::HasNews));
      const int next = NextClass();
      if (next < 0) return;
      work_class = static_cast<size_t>(next);
      ClassQueue& queue = classes_[work_class];
      item = std::move(queue.items.front());
      queue.items.pop_front();
      queue.num_bytes -= item.num_bytes;
      ++queue.num_running;
      queue.drain_rate.Observe(absl::Now(), 1, static_cast<int64_t>(queue.items.size()));
    }
    if (options_.before_work != nullptr) options_.before_work();
    item.work();
    item.work = nullptr;  // and what it holds
    absl::MutexLock lock(&mutex_);
    --classes_[work_class].num_running;
  }
}

}  // namespace ultrasketch
