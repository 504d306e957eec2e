#include "engine/serving/engine_loop/engine_loop.h"

#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"

#include "engine/base/check.h"
#include "engine/base/mutex.h"
#include "engine/base/status.h"
#include "engine/base/thread_name.h"
#include "engine/serving/engine_loop/delivery.h"
#include "engine/serving/engine_loop/drain_rate.h"
#include "engine/serving/engine_loop/engine_core.h"
#include "engine/serving/engine_loop/validate_request.h"

namespace ultrasketch {
namespace {

RequestLimits MakeLimits(const Model& model, const EngineLoopOptions& options) {
  RequestLimits limits;
  limits.vocab_size = model.config().vocab_size;
  limits.max_queued_requests = options.max_queued_requests;
  limits.scheduler = MakeSchedulerOptions(model, options);
  return limits;
}

}  // namespace

class EngineLoop::Impl {
 public:
  Impl(std::unique_ptr<Model> model, std::shared_ptr<const Tokenizer> tokenizer,
       const EngineLoopOptions& options, std::shared_ptr<EngineObserver> observer)
      : limits_(MakeLimits(*model, options)),
        max_queued_tokens_(options.max_queued_tokens),
        trim_interval_(options.cache_idle_time / 2),
        turns_(options.turns != nullptr ? options.turns->Join(options.weight) : nullptr),
        model_(model.get()),
        core_(std::make_unique<EngineCore>(std::move(model), std::move(tokenizer), options,
                                           std::move(observer))),
        core_stats_(core_->stats()),
        delivery_(options.delivery_interval,
                  [this](const std::vector<RequestId>& finished) { OnDelivered(finished); }),
        thread_([this] { Run(); }) {}

  ~Impl() { Stop(); }

  void Stop() {
    {
      MutexLock lock(mutex_);
      stopping_ = true;
    }
    MutexLock lock(join_mutex_);
    if (!thread_.joinable()) return;
    CheckNotOwnThread();
    thread_.join();
    delivery_.Stop();
  }

  absl::StatusOr<RequestId> Submit(GenerationRequest request,
                                   std::shared_ptr<GenerationSink> sink) {
    US_CHECK(sink != nullptr);
    US_RETURN_IF_ERROR(ValidateRequest(request, limits_));
    MutexLock lock(mutex_);
    US_RETURN_IF_ERROR(FindRoom(request.num_completions, NumQueuedTokens(request)));
    const RequestId id = next_id_++;
    const absl::Time arrival =
        request.arrival == absl::InfinitePast() ? absl::Now() : request.arrival;
    num_accepted_completions_ += request.num_completions;
    num_inbox_completions_ += request.num_completions;
    num_inbox_tokens_ += NumQueuedTokens(request);
    inbox_.push_back({id, std::move(request), std::move(sink), arrival});
    in_flight_.insert(id);
    return id;
  }

  absl::Status CheckRoom(int32_t num_completions, int64_t num_tokens) const {
    MutexLock lock(mutex_);
    return FindRoom(num_completions, num_tokens);
  }

  absl::Duration NextRetryDelay() {
    MutexLock lock(mutex_);
    return SpreadRetryDelay(num_queued_completions(), drain_rate_.PerSecond(), num_delayed_++);
  }

  void Cancel(RequestId id) {
    MutexLock lock(mutex_);
    if (in_flight_.contains(id)) cancelled_.insert(id);
  }

  void Drain(absl::Time deadline) {
    CheckNotOwnThread();
    MutexLock lock(mutex_);
    draining_ = true;
    const auto finished = [this]()
                              ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return in_flight_.empty(); };
    if (mutex_.AwaitUntil(finished, deadline)) return;
    cancelled_.insert(in_flight_.begin(), in_flight_.end());
    mutex_.Await(finished);
  }

  EngineLoopStats stats() const {
    MutexLock lock(mutex_);
    EngineLoopStats stats = core_stats_;
    stats.num_waiting += static_cast<int32_t>(inbox_.size());
    stats.num_waiting_tokens += num_inbox_tokens_;
    return stats;
  }

  MemoryUsage memory_usage() const {
    MutexLock lock(model_mutex_);
    return model_ != nullptr ? model_->memory_usage() : MemoryUsage{};
  }

 private:
  // What arrived since the last step.
  struct News {
    std::vector<QueuedRequest> arrivals;
    absl::flat_hash_set<RequestId> cancelled;
    bool stopping = false;
  };

  void CheckNotOwnThread() const {
    US_CHECK(thread_.get_id() != std::this_thread::get_id() && !delivery_.IsThisThread());
  }

  int64_t num_queued_completions() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return num_inbox_completions_ + num_core_waiting_completions_;
  }

  absl::Status FindRoom(int32_t num_completions, int64_t num_tokens) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    if (draining_ || stopping_) return absl::UnavailableError("the model is shutting down");
    US_RETURN_IF_ERROR(ValidateNumCompletions(num_completions, limits_));
    if (num_completions > limits_.max_queued_requests - num_queued_completions()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the queue is full: ", num_queued_completions(), " completions wait; with ",
                       num_completions, " more they would exceed ", limits_.max_queued_requests));
    }
    const int64_t num_queued_tokens = num_inbox_tokens_ + core_stats_.num_waiting_tokens;
    if (num_queued_tokens > 0 && num_tokens > max_queued_tokens_ - num_queued_tokens) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the queue is full: prompts of ", num_queued_tokens, " tokens wait; with ",
                       num_tokens, " more they would exceed ", max_queued_tokens_));
    }
    return absl::OkStatus();
  }

  void Run() {
    NameThisThread("engine_loop");
    while (true) {
      News news = TakeNews();
      for (QueuedRequest& queued : news.arrivals) core_->Add(std::move(queued));
      for (const RequestId id : news.cancelled) {
        core_->End(id, FinishReason::kCancelled, absl::CancelledError("the request was cancelled"));
      }
      if (news.stopping) {
        core_->EndAll(FinishReason::kCancelled, absl::CancelledError("the model is shutting down"));
      }
      core_->ExpireDeadlines(absl::Now());
      TrimCache();
      if (core_->has_requests()) Step();
      if (turns_ != nullptr && !core_->has_requests()) turns_->Release();
      // Before the sinks hear of it: whoever sees a request finish sees its blocks free.
      PublishStats();
      delivery_.Push(core_->TakeEvents());
      if (news.stopping) break;
    }
    FreeModel();
  }

  void Step() {
    if (turns_ != nullptr) turns_->Acquire();
    const absl::Time begin = absl::Now();
    core_->BeginStep();
    PublishStats();  // a step can be long: who left the queue makes room in it now
    core_->FinishStep();
    if (turns_ != nullptr) turns_->EndStep(absl::Now() - begin);
  }

  // Every half of the time that a block may be unused: between one half and the whole of it, it is
  // given back.
  void TrimCache() {
    const absl::Time now = absl::Now();
    if (now < trim_at_) return;
    core_->TrimCache();
    trim_at_ = now + trim_interval_;
  }

  // The model's memory is free when the thread has ended, whoever still holds the loop.
  void FreeModel() ABSL_LOCKS_EXCLUDED(mutex_, model_mutex_) {
    turns_ = nullptr;
    {
      MutexLock lock(model_mutex_);
      model_ = nullptr;
    }
    core_ = nullptr;
    MutexLock lock(mutex_);
    core_stats_ = {};
    num_core_waiting_completions_ = 0;
  }

  // Sleeps until there is something to do.
  News TakeNews() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    News news;
    if (!core_->has_requests()) {
      mutex_.AwaitUntil([this]() ABSL_SHARED_LOCKS_REQUIRED(
                            mutex_) { return !inbox_.empty() || !cancelled_.empty() || stopping_; },
                        core_->has_cache_to_trim() ? trim_at_ : absl::InfiniteFuture());
    }
    news.arrivals.swap(inbox_);
    news.cancelled.swap(cancelled_);
    news.stopping = stopping_;
    num_core_waiting_completions_ += std::exchange(num_inbox_completions_, 0);
    core_stats_.num_waiting += static_cast<int32_t>(news.arrivals.size());
    core_stats_.num_waiting_tokens += std::exchange(num_inbox_tokens_, 0);
    return news;
  }

  void PublishStats() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    core_stats_ = core_->stats();
    num_core_waiting_completions_ = core_->num_waiting_completions();
    const int64_t num_left = num_accepted_completions_ - num_queued_completions();
    drain_rate_.Observe(absl::Now(), num_left - std::exchange(num_left_, num_left),
                        num_queued_completions());
  }

  void OnDelivered(const std::vector<RequestId>& finished) ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    for (const RequestId id : finished) {
      in_flight_.erase(id);
      cancelled_.erase(id);
    }
  }

  const RequestLimits limits_;
  const int64_t max_queued_tokens_;
  const absl::Duration trim_interval_;
  // The thread's alone, once it runs. Null: the device is this loop's alone.
  std::unique_ptr<DeviceTurns::Member> turns_;
  mutable Mutex model_mutex_;
  const Model* model_ ABSL_GUARDED_BY(model_mutex_);  // core_'s
  std::unique_ptr<EngineCore> core_;                  // the thread's alone, once it runs
  absl::Time trim_at_ = absl::InfinitePast();         // the same

  mutable Mutex mutex_;
  RequestId next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  std::vector<QueuedRequest> inbox_ ABSL_GUARDED_BY(mutex_);
  int32_t num_inbox_completions_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t num_inbox_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_set<RequestId> cancelled_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<RequestId> in_flight_ ABSL_GUARDED_BY(mutex_);  // last event not delivered
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  // As of the last step.
  EngineLoopStats core_stats_ ABSL_GUARDED_BY(mutex_);
  int32_t num_core_waiting_completions_ ABSL_GUARDED_BY(mutex_) = 0;
  // Of completions, since the start: taken by Submit, and gone from the queue.
  int64_t num_accepted_completions_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t num_left_ ABSL_GUARDED_BY(mutex_) = 0;
  DrainRate drain_rate_ ABSL_GUARDED_BY(mutex_);
  uint64_t num_delayed_ ABSL_GUARDED_BY(mutex_) = 0;  // NextRetryDelay's calls

  Mutex join_mutex_;
  Delivery delivery_;
  std::thread thread_;  // last: it uses everything above
};

EngineLoop::EngineLoop(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
EngineLoop::~EngineLoop() = default;

std::unique_ptr<EngineLoop> EngineLoop::Start(std::unique_ptr<Model> model,
                                              std::shared_ptr<const Tokenizer> tokenizer,
                                              const EngineLoopOptions& options,
                                              std::shared_ptr<EngineObserver> observer) {
  auto impl =
      std::make_unique<Impl>(std::move(model), std::move(tokenizer), options, std::move(observer));
  return std::unique_ptr<EngineLoop>(new EngineLoop(std::move(impl)));
}

absl::StatusOr<RequestId> EngineLoop::Submit(GenerationRequest request,
                                             std::shared_ptr<GenerationSink> sink) {
  return impl_->Submit(std::move(request), std::move(sink));
}

absl::Status EngineLoop::CheckRoom(int32_t num_completions, int64_t num_tokens) const {
  return impl_->CheckRoom(num_completions, num_tokens);
}

absl::Duration EngineLoop::NextRetryDelay() { return impl_->NextRetryDelay(); }
void EngineLoop::Cancel(RequestId id) { impl_->Cancel(id); }
void EngineLoop::Drain(absl::Time deadline) { impl_->Drain(deadline); }
void EngineLoop::Stop() { impl_->Stop(); }
EngineLoopStats EngineLoop::stats() const { return impl_->stats(); }
MemoryUsage EngineLoop::memory_usage() const { return impl_->memory_usage(); }

}  // namespace ultrasketch
