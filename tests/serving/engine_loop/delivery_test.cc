// Events reach their sinks without the engine waiting for these.
#include "engine/serving/engine_loop/delivery.h"

#include <atomic>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

#include "engine/base/mutex.h"
#include "engine/serving/engine_loop/engine_loop.h"
#include "tests/serving/engine_loop/fake_model.h"
#include "tests/serving/engine_loop/testing.h"

namespace ultrasketch {
namespace {

// Where a sink waits. Counts who has come.
class Barrier {
 public:
  void Pass() {
    MutexLock lock(mutex_);
    ++num_arrived_;
    mutex_.Await([this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return is_open_; });
  }
  void Open() {
    MutexLock lock(mutex_);
    is_open_ = true;
  }
  void WaitForArrival() {
    MutexLock lock(mutex_);
    mutex_.Await([this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return num_arrived_ > 0; });
  }

 private:
  Mutex mutex_;
  bool is_open_ ABSL_GUARDED_BY(mutex_) = false;
  int num_arrived_ ABSL_GUARDED_BY(mutex_) = 0;
};

std::unique_ptr<EngineLoop> StartLoop(FakeModelOptions model = {}) {
  return EngineLoop::Start(std::make_unique<FakeModel>(std::move(model)), ByteTokenizer(), {});
}

std::shared_ptr<RecordingSink> Submit(EngineLoop& loop, std::string_view prompt, int max_tokens,
                                      Barrier* barrier = nullptr) {
  auto sink = std::make_shared<RecordingSink>();
  if (barrier != nullptr) {
    sink->on_delta = [barrier](const GenerationDelta&) { barrier->Pass(); };
  }
  GenerationRequest request;
  request.prompt_ids = Bytes(prompt);
  request.max_tokens = max_tokens;
  EXPECT_TRUE(loop.Submit(std::move(request), sink).ok());
  return sink;
}

TEST(DeliveryTest, ASinkThatTakesItsTimeHoldsUpNoStep) {
  Barrier barrier;
  const auto loop = StartLoop();
  const auto slow = Submit(*loop, "slow", 50, &barrier);
  barrier.WaitForArrival();
  const auto other = Submit(*loop, "other", 50);
  // The engine computes all of both while the first token of one is being delivered.
  while (loop->stats().num_running + loop->stats().num_waiting > 0) std::this_thread::yield();
  EXPECT_EQ(loop->stats().kv_blocks_used, 0);
  EXPECT_FALSE(slow->finished());
  barrier.Open();
  EXPECT_EQ(slow->Wait().token_ids.size(), 50u);
  EXPECT_EQ(other->Wait().token_ids.size(), 50u);
}

TEST(DeliveryTest, StopDeliversWhatWasComputedAndReleasesTheSinks) {
  Barrier barrier;
  const auto loop = StartLoop();
  auto sink = Submit(*loop, "slow", 50, &barrier);
  barrier.WaitForArrival();
  while (loop->stats().num_running > 0) std::this_thread::yield();
  std::atomic<bool> has_stopped = false;
  std::thread stop([&] {
    loop->Stop();
    has_stopped = true;
  });
  while (loop->memory_usage().total() > 0) std::this_thread::yield();
  EXPECT_FALSE(has_stopped);
  barrier.Open();
  stop.join();
  const RecordingSink::Record record = sink->Wait();
  EXPECT_EQ(record.token_ids.size(), 50u);
  EXPECT_EQ(record.result->reason, FinishReason::kLength);
  EXPECT_EQ(sink.use_count(), 1);
}

// A delta of one token, or the end, of a completion.
EngineEvent Event(const std::shared_ptr<GenerationSink>& sink, int32_t token,
                  bool is_first = false) {
  EngineEvent event;
  event.sink = sink;
  event.delta.text = static_cast<char>(token);
  event.delta.token_ids = {token};
  event.is_first = is_first;
  return event;
}

EngineEvent End(const std::shared_ptr<GenerationSink>& sink, RequestId id) {
  EngineEvent event;
  event.sink = sink;
  event.result = std::make_unique<GenerationResult>();
  event.finished_request = id;
  return event;
}

std::vector<EngineEvent> Batch(EngineEvent event) {
  std::vector<EngineEvent> events;
  events.push_back(std::move(event));
  return events;
}

TEST(DeliveryTest, DeltasWithinTheIntervalComeAsOneAndFirstOnesAndEndsAtOnce) {
  std::vector<RequestId> finished;
  // Far beyond the test: nothing here waits for it to pass.
  Delivery delivery(absl::Hours(1), [&](const std::vector<RequestId>& ids) { finished = ids; });
  const auto one = std::make_shared<RecordingSink>();
  const auto two = std::make_shared<RecordingSink>();
  delivery.Push(Batch(Event(one, 'a', /*is_first=*/true)));
  one->WaitForTokens(1);
  for (const char token : {'b', 'c', 'd'}) delivery.Push(Batch(Event(one, token)));
  delivery.Push(Batch(Event(two, 'x', /*is_first=*/true)));
  two->WaitForTokens(1);
  one->WaitForTokens(4);
  delivery.Push(Batch(Event(one, 'e')));
  delivery.Push(Batch(End(one, 7)));
  const RecordingSink::Record record = one->Wait();
  EXPECT_EQ(record.text, "abcde");
  EXPECT_EQ(record.token_ids, Bytes("abcde"));
  EXPECT_EQ(record.num_deltas, 3) << "a, bcd, e";
  delivery.Push(Batch(Event(two, 'y')));
  delivery.Stop();  // delivers it
  EXPECT_EQ(finished, std::vector<RequestId>{7});
  two->WaitForTokens(2);
}

TEST(DeliveryTest, LargeDeltasAreNotMerged) {
  Delivery delivery(absl::Hours(1), [](const std::vector<RequestId>&) {});
  const auto with_logprobs = std::make_shared<RecordingSink>();
  const auto many = std::make_shared<RecordingSink>();
  delivery.Push(Batch(Event(many, 'a', /*is_first=*/true)));
  many->WaitForTokens(1);
  for (int i = 0; i < 3; ++i) {
    EngineEvent event = Event(with_logprobs, 'x');
    event.delta.logprobs.resize(1);
    delivery.Push(Batch(std::move(event)));
  }
  for (int i = 0; i < 40; ++i) delivery.Push(Batch(Event(many, 'b')));
  delivery.Push(Batch(End(many, 1)));
  delivery.Push(Batch(End(with_logprobs, 2)));
  EXPECT_EQ(with_logprobs->Wait().num_deltas, 3);
  EXPECT_EQ(with_logprobs->Wait().logprobs.size(), 3u);
  const RecordingSink::Record record = many->Wait();
  EXPECT_EQ(record.text, "a" + std::string(40, 'b'));
  EXPECT_EQ(record.num_deltas, 4) << "a, and 16, 16 and 8 more";
}

TEST(DeliveryTest, WhatWaitsIsDeliveredWhenTheIntervalIsOver) {
  Delivery delivery(absl::Milliseconds(20), [](const std::vector<RequestId>&) {});
  const auto sink = std::make_shared<RecordingSink>();
  delivery.Push(Batch(Event(sink, 'a', /*is_first=*/true)));
  sink->WaitForTokens(1);
  delivery.Push(Batch(Event(sink, 'b')));
  sink->WaitForTokens(2);
}

TEST(DeliveryTest, DrainReturnsAfterTheLastEventsWereDelivered) {
  Barrier barrier;
  const auto loop = StartLoop();
  auto sink = Submit(*loop, "slow", 5, &barrier);
  barrier.WaitForArrival();
  while (loop->stats().num_running > 0) std::this_thread::yield();
  std::thread drain([&] {
    loop->Drain(absl::InfiniteFuture());
    EXPECT_TRUE(sink->finished());
    EXPECT_EQ(sink.use_count(), 1);
  });
  barrier.Open();
  drain.join();
}

}  // namespace
}  // namespace ultrasketch
