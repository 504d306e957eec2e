// How requests end before their time, and how the loop does.

#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/mutex.h"
#include "engine/serving/engine_loop/drain_rate.h"
#include "engine/serving/engine_loop/engine_loop.h"
#include "tests/serving/engine_loop/fake_model.h"
#include "tests/serving/engine_loop/testing.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

GenerationRequest Request(std::string_view prompt, int32_t max_tokens) {
  GenerationRequest request;
  request.prompt_ids = Bytes(prompt);
  request.max_tokens = max_tokens;
  return request;
}

// Holds the model's steps back. Opens by itself at the end, so that the loop can end.
class Gate {
 public:
  ~Gate() { Open(); }

  // To be called at the beginning of a step; waits while the gate is closed.
  absl::Status Pass() {
    MutexLock lock(mutex_);
    ++num_arrived_;
    mutex_.Await([this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return is_open_; });
    return absl::OkStatus();
  }
  void Open() {
    MutexLock lock(mutex_);
    is_open_ = true;
  }
  // Waits until a step stands before the gate, or went through it.
  void WaitForArrival() {
    MutexLock lock(mutex_);
    mutex_.Await([this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return num_arrived_ > 0; });
  }

 private:
  Mutex mutex_;
  bool is_open_ ABSL_GUARDED_BY(mutex_) = false;
  int num_arrived_ ABSL_GUARDED_BY(mutex_) = 0;
};

class EngineLoopLifecycleTest : public ::testing::Test {
 protected:
  void Start(FakeModelOptions model = {}) {
    loop_ = EngineLoop::Start(std::make_unique<FakeModel>(std::move(model)), ByteTokenizer(),
                              options_, observer_);
  }
  // A loop whose first step waits for the gate.
  void StartGated() {
    FakeModelOptions model;
    model.before_forward = [this](int64_t) { return gate_.Pass(); };
    Start(std::move(model));
  }

  std::shared_ptr<RecordingSink> Submit(GenerationRequest request, RequestId* id = nullptr) {
    auto sink = std::make_shared<RecordingSink>(request.num_completions);
    const absl::StatusOr<RequestId> submitted = loop_->Submit(std::move(request), sink);
    EXPECT_TRUE(submitted.ok()) << submitted.status();
    if (id != nullptr) *id = submitted.value_or(0);
    return sink;
  }

  absl::Status SubmitStatus(GenerationRequest request) {
    return loop_->Submit(std::move(request), std::make_shared<RecordingSink>()).status();
  }

  EngineLoopOptions options_;
  std::shared_ptr<EngineObserver> observer_;
  std::unique_ptr<EngineLoop> loop_;
  Gate gate_;  // opened before the loop ends
};

TEST_F(EngineLoopLifecycleTest, RefusesRequestsWhenTheQueueIsFull) {
  options_.max_queued_requests = 2;
  options_.max_running_sequences = 1;
  StartGated();
  const auto running = Submit(Request("a", 2));
  gate_.WaitForArrival();
  const auto first = Submit(Request("b", 2));
  GenerationRequest pair = Request("c", 2);
  pair.num_completions = 2;
  EXPECT_EQ(SubmitStatus(pair).code(), absl::StatusCode::kResourceExhausted);
  const auto second = Submit(Request("d", 2));
  EXPECT_EQ(SubmitStatus(Request("e", 2)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(loop_->stats().num_waiting, 2);
  EXPECT_EQ(loop_->stats().num_running, 1);
  EXPECT_EQ(loop_->stats().kv_blocks_used, 1);
  gate_.Open();
  for (const auto& sink : {running, first, second}) {
    EXPECT_EQ(sink->Wait().result->reason, FinishReason::kLength);
  }
  EXPECT_EQ(Submit(Request("f", 2))->Wait().result->reason, FinishReason::kLength);
}

TEST_F(EngineLoopLifecycleTest, RefusesRequestsWhenTooManyTokensWait) {
  options_.max_queued_tokens = 10;
  options_.max_running_sequences = 1;
  StartGated();
  const auto running = Submit(Request("a", 2));
  gate_.WaitForArrival();
  EXPECT_EQ(loop_->stats().num_waiting_tokens, 0);
  GenerationRequest pair = Request("bbb", 2);
  pair.num_completions = 2;
  const auto first = Submit(pair);
  EXPECT_EQ(loop_->stats().num_waiting_tokens, 6);
  const absl::Status status = SubmitStatus(Request("ccccc", 2));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("6 tokens"));
  EXPECT_EQ(loop_->CheckRoom(1, 5), status);
  EXPECT_TRUE(loop_->CheckRoom(1, 4).ok());
  const auto second = Submit(Request("dddd", 2));
  EXPECT_EQ(loop_->stats().num_waiting_tokens, 10);
  gate_.Open();
  for (const auto& sink : {running, first, second}) {
    EXPECT_EQ(sink->Wait().result->reason, FinishReason::kLength);
  }
  EXPECT_EQ(loop_->stats().num_waiting_tokens, 0);
}

TEST_F(EngineLoopLifecycleTest, APromptOfMoreTokensThanMayWaitIsTakenWhenNoOthersWait) {
  options_.max_queued_tokens = 3;
  StartGated();
  const auto sink = Submit(Request("long prompt", 2));
  gate_.WaitForArrival();
  RequestId id = 0;
  const auto next = Submit(Request("another one", 2), &id);
  EXPECT_EQ(SubmitStatus(Request("x", 2)).code(), absl::StatusCode::kResourceExhausted);
  loop_->Cancel(id);
  gate_.Open();
  EXPECT_EQ(sink->Wait().result->reason, FinishReason::kLength);
  EXPECT_EQ(next->Wait().result->reason, FinishReason::kCancelled);
  EXPECT_EQ(loop_->stats().num_waiting_tokens, 0);
}

TEST_F(EngineLoopLifecycleTest, TheRetryDelayFollowsTheDrainRate) {
  Start();
  EXPECT_EQ(loop_->NextRetryDelay(), kUnknownRetryDelay);
  options_.max_running_sequences = 1;
  StartGated();
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 20; ++i) sinks.push_back(Submit(Request("a", 2)));
  gate_.Open();
  for (const auto& sink : sinks) sink->Wait();
  // Two steps of a fake model, and nobody waits: as soon as may be.
  while (loop_->NextRetryDelay() == kUnknownRetryDelay) std::this_thread::yield();
  EXPECT_LT(loop_->NextRetryDelay(), kMaxRetryDelay);
}

TEST_F(EngineLoopLifecycleTest, AnIdleLoopForgetsItsCacheAndGoesOnWithout) {
  options_.cache_idle_time = absl::Milliseconds(20);
  Start();
  const GenerationRequest request = Request("the same prompt, four blocks long", 20);
  const RecordingSink::Record first = Submit(request)->Wait();
  while (loop_->stats().kv_blocks_cached > 0) std::this_thread::yield();
  EXPECT_EQ(loop_->stats().kv_blocks_used, 0);
  const RecordingSink::Record second = Submit(request)->Wait();
  EXPECT_EQ(second.result->num_cached_prompt_tokens, 0);
  EXPECT_EQ(second.token_ids, first.token_ids);
}

TEST_F(EngineLoopLifecycleTest, WhatABurstLeftInTheCacheIsForgottenUnderASteadyLoad) {
  options_.cache_idle_time = absl::Milliseconds(20);
  Start();
  std::vector<std::shared_ptr<RecordingSink>> burst;
  for (int i = 0; i < 8; ++i) {
    burst.push_back(Submit(Request(absl::StrCat(i, " prompts of a burst"), 20)));
  }
  for (const auto& sink : burst) sink->Wait();
  const int64_t blocks_of_burst = loop_->stats().kv_blocks_cached;
  const GenerationRequest request = Request("the same prompt, four blocks long", 20);
  const RecordingSink::Record first = Submit(request)->Wait();
  RecordingSink::Record last;
  do {
    last = Submit(request)->Wait();
    EXPECT_EQ(last.token_ids, first.token_ids);
  } while (loop_->stats().kv_blocks_cached >= blocks_of_burst);
}

TEST_F(EngineLoopLifecycleTest, CancellationInMidStreamReturnsTheBlocks) {
  FakeModelOptions model;
  model.before_forward = [this](int64_t index) {
    return index == 3 ? gate_.Pass() : absl::OkStatus();
  };
  Start(std::move(model));
  RequestId id = 0;
  const auto sink = Submit(Request("a prompt", 200), &id);
  sink->WaitForTokens(3);
  gate_.WaitForArrival();
  EXPECT_EQ(loop_->stats().kv_blocks_used, 3);  // 11 tokens, four to a block
  loop_->Cancel(id);
  gate_.Open();
  const RecordingSink::Record record = sink->Wait();
  EXPECT_THAT(record.token_ids, SizeIs(4));  // the step at hand ends
  EXPECT_EQ(record.result->reason, FinishReason::kCancelled);
  EXPECT_EQ(record.result->status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(static_cast<size_t>(record.result->num_completion_tokens), record.token_ids.size());
  EXPECT_EQ(loop_->stats().kv_blocks_used, 0);
  EXPECT_EQ(loop_->stats().num_running, 0);
}

TEST_F(EngineLoopLifecycleTest, CancellationEndsAllCompletions) {
  StartGated();
  GenerationRequest request = Request("a prompt", 200);
  request.num_completions = 3;
  RequestId id = 0;
  const auto sink = Submit(request, &id);
  gate_.WaitForArrival();
  loop_->Cancel(id);
  gate_.Open();
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(sink->Wait(i).result->reason, FinishReason::kCancelled);
  }
  EXPECT_EQ(loop_->stats().kv_blocks_used, 0);
}

TEST_F(EngineLoopLifecycleTest, ACancelledWaitingRequestIsDroppedWithoutAStep) {
  options_.max_running_sequences = 1;
  StartGated();
  const auto running = Submit(Request("a", 200));
  gate_.WaitForArrival();
  RequestId id = 0;
  const auto waiting = Submit(Request("b", 200), &id);
  loop_->Cancel(id);
  gate_.Open();
  const RecordingSink::Record record = waiting->Wait();
  EXPECT_EQ(record.result->reason, FinishReason::kCancelled);
  EXPECT_EQ(record.result->timing.num_steps, 0);
  EXPECT_THAT(record.token_ids, SizeIs(0));
  EXPECT_EQ(running->Wait().result->reason, FinishReason::kLength);
}

TEST_F(EngineLoopLifecycleTest, CancellingUnknownAndFinishedRequestsDoesNothing) {
  Start();
  loop_->Cancel(12345);
  RequestId id = 0;
  Submit(Request("a", 2), &id)->Wait();
  loop_->Cancel(id);
  loop_->Cancel(id + 1);  // the next one's
  EXPECT_EQ(Submit(Request("b", 2))->Wait().result->reason, FinishReason::kLength);
}

TEST_F(EngineLoopLifecycleTest, SinksMayCancelAndSubmit) {
  FakeModelOptions model;
  model.before_forward = [this](int64_t index) {
    return index == 1 ? gate_.Pass() : absl::OkStatus();
  };
  Start(std::move(model));
  Gate has_id;
  RequestId id = 0;
  const auto next = std::make_shared<RecordingSink>();
  const auto sink = std::make_shared<RecordingSink>();
  sink->on_delta = [&](const GenerationDelta&) {
    EXPECT_TRUE(has_id.Pass().ok());
    loop_->Cancel(id);
    gate_.Open();
  };
  sink->on_finish = [&](const GenerationResult&) {
    EXPECT_TRUE(loop_->Submit(Request("next", 3), next).ok());
  };
  const absl::StatusOr<RequestId> submitted = loop_->Submit(Request("a", 200), sink);
  ASSERT_TRUE(submitted.ok());
  id = *submitted;
  has_id.Open();
  EXPECT_EQ(sink->Wait().result->reason, FinishReason::kCancelled);
  EXPECT_THAT(next->Wait().token_ids, SizeIs(3));
}

TEST_F(EngineLoopLifecycleTest, TheSinkIsReleasedAfterItsLastEnd) {
  Start();
  auto sink = std::make_shared<RecordingSink>();
  const std::weak_ptr<RecordingSink> watched = sink;
  ASSERT_TRUE(loop_->Submit(Request("a", 2), sink).ok());
  sink->Wait();
  sink.reset();
  loop_->Drain(absl::InfiniteFuture());
  EXPECT_TRUE(watched.expired());
}

TEST_F(EngineLoopLifecycleTest, ADeadlineEndsAQueuedRequest) {
  options_.max_running_sequences = 1;
  StartGated();
  const auto running = Submit(Request("a", 2));
  gate_.WaitForArrival();
  GenerationRequest request = Request("b", 2);
  request.deadline = absl::Now() - absl::Seconds(1);
  const auto queued = Submit(request);
  gate_.Open();
  const RecordingSink::Record record = queued->Wait();
  EXPECT_EQ(record.result->reason, FinishReason::kError);
  EXPECT_EQ(record.result->status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(record.result->status.message()), HasSubstr("queued"));
  EXPECT_EQ(record.result->timing.num_steps, 0);
  EXPECT_EQ(running->Wait().result->reason, FinishReason::kLength);
}

TEST_F(EngineLoopLifecycleTest, ADeadlineEndsAPromptThatIsBeingComputed) {
  const absl::Time deadline = absl::Now() + absl::Milliseconds(50);
  std::atomic<int> num_steps = 0;
  FakeModelOptions model;
  model.before_forward = [&](int64_t) {
    ++num_steps;
    while (absl::Now() <= deadline) absl::SleepFor(absl::Milliseconds(5));
    return absl::OkStatus();
  };
  Start(std::move(model));
  GenerationRequest request = Request(std::string(200, 'a'), 10);  // four steps of 64 tokens
  request.deadline = deadline;
  const RecordingSink::Record record = Submit(request)->Wait();
  EXPECT_EQ(record.result->status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(record.token_ids, SizeIs(0));
  EXPECT_LE(num_steps, 1) << "what comes after the deadline is not computed";
  EXPECT_EQ(loop_->stats().kv_blocks_used, 0);
}

TEST_F(EngineLoopLifecycleTest, ADeadlineEndsARunningRequestAndReturnsItsBlocks) {
  FakeModelOptions model;
  // Step after step until the deadline has passed: however slow the machine, not all 200 tokens.
  model.before_forward = [](int64_t index) {
    if (index == 5) absl::SleepFor(absl::Milliseconds(300));
    return absl::OkStatus();
  };
  Start(std::move(model));
  GenerationRequest request = Request("a", 200);
  request.deadline = absl::Now() + absl::Milliseconds(250);
  const RecordingSink::Record record = Submit(request)->Wait();
  EXPECT_EQ(record.result->reason, FinishReason::kError);
  EXPECT_EQ(record.result->status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_LE(record.token_ids.size(), 6u);
  EXPECT_EQ(loop_->stats().kv_blocks_used, 0);
}

TEST_F(EngineLoopLifecycleTest, AModelsErrorEndsThoseInTheStepAndTheLoopLivesOn) {
  options_.max_running_sequences = 1;
  FakeModelOptions model;
  model.before_forward = [this](int64_t index) -> absl::Status {
    if (index == 0) return gate_.Pass();
    if (index == 3) return absl::UnavailableError("the device fell off");
    return absl::OkStatus();
  };
  Start(std::move(model));
  const auto failing = Submit(Request("a", 20));
  gate_.WaitForArrival();
  const auto waiting = Submit(Request("b", 20));
  gate_.Open();
  const RecordingSink::Record record = failing->Wait();
  EXPECT_EQ(record.result->reason, FinishReason::kError);
  EXPECT_EQ(record.result->status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(std::string(record.result->status.message()), "the device fell off");
  EXPECT_THAT(record.token_ids, SizeIs(3));
  EXPECT_EQ(waiting->Wait().result->reason, FinishReason::kLength);
  EXPECT_EQ(loop_->stats().kv_blocks_used, 0);
}

TEST_F(EngineLoopLifecycleTest, LogitsThatAreNotNumbersEndOnlyTheirRequest) {
  FakeModelOptions model;
  model.logits = [](absl::Span<const int32_t> tokens) {
    std::vector<float> logits = HashLogits(tokens, 300);
    if (tokens[0] == 'x' && tokens.size() == 4) {
      logits[7] = std::numeric_limits<float>::quiet_NaN();
    }
    return logits;
  };
  model.before_forward = [this](int64_t index) {
    return index == 0 ? gate_.Pass() : absl::OkStatus();
  };
  Start(std::move(model));
  const auto first = Submit(Request("w", 20));
  gate_.WaitForArrival();
  const auto bad = Submit(Request("x", 20));
  const auto good = Submit(Request("y", 20));
  GenerationRequest scored = Request("xyzzy", 3);
  scored.prompt_logprobs = 0;
  const auto bad_prompt = Submit(scored);
  gate_.Open();
  EXPECT_EQ(bad->Wait().result->status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(bad->Wait().token_ids, SizeIs(3));
  EXPECT_EQ(bad_prompt->Wait().result->status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(first->Wait().result->reason, FinishReason::kLength);
  EXPECT_EQ(good->Wait().result->reason, FinishReason::kLength);
  EXPECT_EQ(loop_->stats().kv_blocks_used, 0);
}

TEST_F(EngineLoopLifecycleTest, DrainFinishesWhatIsInFlightAndRefusesMore) {
  StartGated();
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 5; ++i) sinks.push_back(Submit(Request("abc", 10)));
  gate_.WaitForArrival();
  std::thread drain([this] { loop_->Drain(absl::InfiniteFuture()); });
  // Refused from the moment that Drain is at work.
  absl::Status status;
  while (status.ok()) status = SubmitStatus(Request("late", 1));
  EXPECT_TRUE(status.code() == absl::StatusCode::kUnavailable ||
              status.code() == absl::StatusCode::kResourceExhausted)
      << status;
  gate_.Open();
  drain.join();
  EXPECT_EQ(SubmitStatus(Request("late", 1)).code(), absl::StatusCode::kUnavailable);
  for (const auto& sink : sinks) {
    EXPECT_TRUE(sink->finished());
    EXPECT_EQ(sink->Wait().result->reason, FinishReason::kLength);
  }
}

TEST_F(EngineLoopLifecycleTest, DrainCancelsWhatIsLeftAtItsDeadline) {
  FakeModelOptions model;
  model.max_position_embeddings = 1 << 20;
  model.model.kv_cache_tokens = 1 << 20;
  model.vocab_size = 257;
  model.logits = [](absl::Span<const int32_t>) { return std::vector<float>(257, 0.0f); };
  Start(std::move(model));
  const auto sink = Submit(Request("a", 1 << 19));
  sink->WaitForTokens(2);
  loop_->Drain(absl::Now());
  EXPECT_TRUE(sink->finished());
  EXPECT_EQ(sink->Wait().result->reason, FinishReason::kCancelled);
}

TEST_F(EngineLoopLifecycleTest, DrainingAnIdleLoopReturnsAtOnce) {
  Start();
  // Far from what it takes, and from what a slow machine makes of it.
  const absl::Time deadline = absl::Now() + absl::Minutes(5);
  loop_->Drain(deadline);
  EXPECT_LT(absl::Now(), deadline);
  EXPECT_EQ(SubmitStatus(Request("late", 1)).code(), absl::StatusCode::kUnavailable);
  loop_->Drain(absl::InfinitePast());
}

TEST_F(EngineLoopLifecycleTest, DestructionCancelsWhatIsInFlight) {
  options_.max_running_sequences = 1;
  StartGated();
  const auto running = Submit(Request("a", 200));
  gate_.WaitForArrival();
  const auto waiting = Submit(Request("b", 200));
  std::thread destroy([this] { loop_.reset(); });
  gate_.Open();
  destroy.join();
  // The running one may have finished first; both have ended.
  EXPECT_TRUE(running->finished());
  EXPECT_TRUE(waiting->finished());
}

TEST_F(EngineLoopLifecycleTest, SubmitAndCancelFromManyThreads) {
  FakeModelOptions model;
  model.model.kv_cache_tokens = 400;
  Start(std::move(model));
  std::vector<std::thread> clients;
  for (int client = 0; client < 6; ++client) {
    clients.emplace_back([this, client] {
      for (int i = 0; i < 20; ++i) {
        const auto sink = std::make_shared<RecordingSink>();
        const absl::StatusOr<RequestId> id = loop_->Submit(
            Request(std::string(static_cast<size_t>(1 + 7 * client + i), 'q'), 50), sink);
        ASSERT_TRUE(id.ok()) << id.status();
        sink->WaitForTokens(static_cast<size_t>(i));
        loop_->Cancel(*id);
        loop_->stats();
        const RecordingSink::Record record = sink->Wait();
        EXPECT_GE(record.token_ids.size(), static_cast<size_t>(i));
        EXPECT_TRUE(record.result->reason == FinishReason::kCancelled ||
                    record.result->reason == FinishReason::kLength);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(loop_->stats().kv_blocks_used, 0);
  EXPECT_EQ(loop_->stats().kv_blocks_free, 100);
}

TEST_F(EngineLoopLifecycleTest, AnUrgentRequestEndsWhileALaxOneHoldsTheOnlySlot) {
  options_.max_running_sequences = 1;
  FakeModelOptions model;
  model.before_forward = [this](int64_t index) {
    return index == 3 ? gate_.Pass() : absl::OkStatus();
  };
  Start(std::move(model));
  GenerationRequest lax = Request("lax and long", 200);
  lax.priority = 10;
  const auto lax_sink = Submit(lax);
  gate_.WaitForArrival();
  GenerationRequest urgent = Request("urgent", 5);
  urgent.priority = -5;
  auto urgent_sink = std::make_shared<RecordingSink>();
  bool lax_has_finished = true;
  urgent_sink->on_finish = [&](const GenerationResult&) {
    lax_has_finished = lax_sink->finished();
  };
  ASSERT_TRUE(loop_->Submit(urgent, urgent_sink).ok());
  gate_.Open();
  EXPECT_THAT(urgent_sink->Wait().token_ids, SizeIs(5));
  EXPECT_FALSE(lax_has_finished);
  const LogitsFunction logits = [](absl::Span<const int32_t> tokens) {
    return HashLogits(tokens, 300);
  };
  EXPECT_EQ(lax_sink->Wait().token_ids,
            GenerateAlone(logits, lax.prompt_ids, lax.sampling, lax.max_tokens));
  EXPECT_EQ(loop_->stats().num_preemptions, 1);
}

TEST_F(EngineLoopLifecycleTest, ManyRequestsOfOneClientDoNotStandBeforeAnothersOne) {
  options_.max_running_sequences = 1;
  StartGated();
  GenerationRequest request = Request("busy", 3);
  request.client = "busy";
  std::vector<std::shared_ptr<RecordingSink>> busy;
  for (int i = 0; i < 20; ++i) busy.push_back(Submit(request));
  gate_.WaitForArrival();
  request.client = "calm";
  auto calm = std::make_shared<RecordingSink>();
  int num_busy_finished = -1;
  calm->on_finish = [&](const GenerationResult&) {
    num_busy_finished = 0;
    for (const auto& sink : busy) num_busy_finished += sink->finished() ? 1 : 0;
  };
  ASSERT_TRUE(loop_->Submit(request, calm).ok());
  gate_.Open();
  calm->Wait();
  EXPECT_LE(num_busy_finished, 2);
  for (const auto& sink : busy) EXPECT_EQ(sink->Wait().result->reason, FinishReason::kLength);
}

// Counts what is reported. The loop calls it on one thread; the test reads after Drain.
class CountingObserver final : public EngineObserver {
 public:
  void OnStep(const StepReport& report) override {
    ++num_steps;
    num_prefill_tokens += report.num_prefill_tokens;
    num_decode_tokens += report.num_decode_tokens;
    EXPECT_GE(report.num_sequences, 1);
    EXPECT_GE(report.duration, absl::ZeroDuration());
    if (report.stages.has_value()) stages.push_back(*report.stages);
    durations.push_back(report.duration);
  }
  void OnFirstToken(absl::Duration since_arrival) override {
    ++num_first_tokens;
    EXPECT_GE(since_arrival, absl::ZeroDuration());
  }
  void OnInterToken(absl::Duration) override { ++num_inter_tokens; }
  void OnScheduled(absl::Duration queued) override {
    ++num_scheduled;
    EXPECT_GE(queued, absl::ZeroDuration());
  }

  int num_steps = 0, num_prefill_tokens = 0, num_decode_tokens = 0, num_first_tokens = 0;
  int num_inter_tokens = 0, num_scheduled = 0;
  std::vector<StageDurations> stages;
  std::vector<absl::Duration> durations;
};

TEST_F(EngineLoopLifecycleTest, TheObserverSeesEveryStepAndToken) {
  const auto observer = std::make_shared<CountingObserver>();
  observer_ = observer;
  Start();
  Submit(Request("12345", 4))->Wait();
  GenerationRequest pair = Request("abcdefghi", 3);
  pair.num_completions = 2;
  Submit(pair)->Wait();
  loop_->Drain(absl::InfiniteFuture());
  EXPECT_EQ(observer->num_steps, 4 + 4);  // the second completion waits for the first's prompt
  EXPECT_EQ(observer->num_prefill_tokens, 5 + 9 + 1);  // two blocks of four are shared
  EXPECT_EQ(observer->num_decode_tokens, 3 + 2 + 2);
  EXPECT_EQ(observer->num_scheduled, 2);
  EXPECT_EQ(observer->num_first_tokens, 2);
  EXPECT_EQ(observer->num_inter_tokens, 3 + 2 + 2);
}

TEST_F(EngineLoopLifecycleTest, TheStagesOfAMeasuredStepAddUpToIt) {
  const auto observer = std::make_shared<CountingObserver>();
  observer_ = observer;
  FakeModelOptions model;
  // A fraction of what the step takes.
  model.stage_durations.emplace();
  (*model.stage_durations)[StepStage::kSketch] = absl::Nanoseconds(2);
  (*model.stage_durations)[StepStage::kHead] = absl::Nanoseconds(1);
  Start(std::move(model));
  Submit(Request("12345", 4))->Wait();
  loop_->Drain(absl::InfiniteFuture());
  ASSERT_EQ(observer->stages.size(), 4u);
  for (size_t i = 0; i < observer->stages.size(); ++i) {
    const StageDurations& stages = observer->stages[i];
    EXPECT_EQ(stages.total(), observer->durations[i]);
    EXPECT_EQ(stages[StepStage::kSketch], absl::Nanoseconds(2));
    EXPECT_EQ(stages[StepStage::kHead], absl::Nanoseconds(1));
    EXPECT_GT(stages[StepStage::kSampling], absl::ZeroDuration());
    EXPECT_GT(stages[StepStage::kOther], absl::ZeroDuration());
  }
}

TEST_F(EngineLoopLifecycleTest, StepsThatWereNotMeasuredHaveNoStages) {
  const auto observer = std::make_shared<CountingObserver>();
  observer_ = observer;
  Start();
  Submit(Request("12345", 4))->Wait();
  loop_->Drain(absl::InfiniteFuture());
  EXPECT_EQ(observer->num_steps, 4);
  EXPECT_TRUE(observer->stages.empty());
}

TEST_F(EngineLoopLifecycleTest, TellsTheMemoryOfTheModel) {
  Start();
  EXPECT_EQ(loop_->memory_usage().weights, 1000);
  EXPECT_EQ(loop_->memory_usage().workspace, 30);
}

TEST_F(EngineLoopLifecycleTest, LoopsThatShareADeviceGiveItBackWhenTheyHaveNothingToDo) {
  options_.turns = std::make_shared<DeviceTurns>();
  Start();
  const std::unique_ptr<EngineLoop> other = std::move(loop_);
  Start();
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(Submit(Request("one", 4))->Wait().token_ids.size(), 4u);
    auto sink = std::make_shared<RecordingSink>();
    ASSERT_TRUE(other->Submit(Request("two", 4), sink).ok());
    EXPECT_EQ(sink->Wait().token_ids.size(), 4u);
  }
  // Both at once.
  auto sink = std::make_shared<RecordingSink>();
  ASSERT_TRUE(other->Submit(Request("two", 100), sink).ok());
  EXPECT_EQ(Submit(Request("one", 100))->Wait().token_ids.size(), 100u);
  EXPECT_EQ(sink->Wait().token_ids.size(), 100u);
}

TEST_F(EngineLoopLifecycleTest, StopFreesTheModelAndRefusesWhatComesLater) {
  Start();
  EXPECT_GT(loop_->memory_usage().total(), 0);
  Submit(Request("one", 4))->Wait();
  loop_->Stop();
  EXPECT_EQ(loop_->memory_usage().total(), 0);
  EXPECT_EQ(loop_->stats().kv_blocks_free, 0);
  EXPECT_TRUE(absl::IsUnavailable(
      loop_->Submit(Request("two", 4), std::make_shared<RecordingSink>()).status()));
  loop_->Drain(absl::InfiniteFuture());
  loop_->Stop();
}

}  // namespace
}  // namespace ultrasketch
