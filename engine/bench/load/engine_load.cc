#include "engine/bench/load/engine_load.h"

#include <chrono>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

#include "engine/base/cpu_time.h"
#include "engine/base/mutex.h"

namespace ultrasketch {
namespace {

// How long to wait for the engine before looking whether the run is stopped.
constexpr absl::Duration kTick = absl::Milliseconds(100);

// Where the loop's delivery thread leaves the requests that have ended. Thread-safe.
class EndedRequests {
 public:
  double Now() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

  void Push(LoadRecord record) {
    MutexLock lock(mutex_);
    records_.push_back(std::move(record));
  }

  // Those that have ended since the last call; waits a tick at most for one.
  std::vector<LoadRecord> Take() {
    MutexLock lock(mutex_);
    mutex_.AwaitUntil([this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return !records_.empty(); },
                      absl::Now() + kTick);
    return std::exchange(records_, {});
  }

 private:
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  Mutex mutex_;
  std::vector<LoadRecord> records_ ABSL_GUARDED_BY(mutex_);
};

class RecordingSink final : public GenerationSink {
 public:
  RecordingSink(LoadRecord record, std::shared_ptr<EndedRequests> ended)
      : record_(std::move(record)), ended_(std::move(ended)) {}

  void OnDelta(GenerationDelta delta) override {
    if (delta.token_ids.empty()) return;
    record_.AddTokens(ended_->Now(), static_cast<int32_t>(delta.token_ids.size()));
  }

  void OnFinish(GenerationResult result) override {
    record_.end_seconds = ended_->Now();
    record_.prompt_tokens = result.num_prompt_tokens;
    record_.cached_prompt_tokens = result.num_cached_prompt_tokens;
    record_.queue_seconds = absl::ToDoubleSeconds(result.timing.queue);
    record_.prefill_seconds = absl::ToDoubleSeconds(result.timing.prefill);
    record_.mean_batch_size = result.timing.mean_batch_size;
    record_.code = result.status.code();
    record_.message = std::string(result.status.message());
    ended_->Push(std::move(record_));
  }

 private:
  LoadRecord record_;
  const std::shared_ptr<EndedRequests> ended_;
};

GenerationRequest ToEngineRequest(LoadRequest request, float temperature) {
  GenerationRequest result;
  result.prompt_ids = std::move(request.prompt_ids);
  result.max_tokens = request.output_tokens;
  result.sampling.temperature = temperature;
  result.sampling.seed = request.seed;
  return result;
}

}  // namespace

absl::StatusOr<RunRecord> RunEngineLoad(EngineLoop& loop, const Workload& workload,
                                        const SchedulePlan& plan,
                                        const EngineLoadOptions& options) {
  RunRecord run;
  run.plan = plan;
  Schedule schedule(plan);
  int64_t num_built = 0;
  std::optional<GenerationRequest> next;  // built before it is due
  const auto build = [&] {
    next = ToEngineRequest(workload.Request(num_built++), options.temperature);
  };
  build();

  const double cpu_begin = ProcessCpuSeconds();
  const auto ended = std::make_shared<EndedRequests>();
  int64_t num_running = 0;
  // False when the schedule has ended.
  const auto send = [&] {
    const std::optional<ScheduledRequest> scheduled = schedule.Next(ended->Now());
    if (!scheduled.has_value()) return false;
    LoadRecord record;
    record.is_measured = scheduled->is_measured;
    record.intended_seconds = scheduled->intended_seconds;
    record.wanted_tokens = next->max_tokens;
    record.sent_seconds = ended->Now();
    const auto id = loop.Submit(*std::move(next), std::make_shared<RecordingSink>(record, ended));
    if (id.ok()) {
      ++num_running;
    } else {
      record.end_seconds = ended->Now();
      record.code = id.status().code();
      record.message = std::string(id.status().message());
      run.requests.push_back(std::move(record));
    }
    build();
    return true;
  };
  for (int64_t i = 0; i < plan.concurrency && send(); ++i) {
  }
  while (num_running > 0) {
    std::vector<LoadRecord> records = ended->Take();
    num_running -= static_cast<int64_t>(records.size());
    for (LoadRecord& record : records) {
      run.requests.push_back(std::move(record));
      send();
    }
    if (options.progress != nullptr) {
      options.progress(static_cast<int64_t>(run.requests.size()), ended->Now());
    }
    if (options.stop.stop_requested()) {
      loop.Drain(absl::Now());
      return absl::CancelledError(absl::StrCat(run.requests.size(), " requests had ended"));
    }
  }
  run.client.includes_engine = true;
  run.client.wall_seconds = ended->Now();
  run.client.cpu_seconds = ProcessCpuSeconds() - cpu_begin;
  return run;
}

}  // namespace ultrasketch
