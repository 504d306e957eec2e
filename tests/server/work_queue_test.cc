#include "server/work_queue.h"

#include <atomic>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/status.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;

constexpr WorkClass kGeneration = WorkClass::kGeneration;
constexpr WorkClass kTokenization = WorkClass::kTokenization;

// Work that has begun and waits until it may end.
class Held {
 public:
  Held(WorkQueue& queue, WorkClass work_class) {
    EXPECT_TRUE(queue
                    .Add(work_class, this, 1,
                         [this] {
                           begun_.Notify();
                           end_.WaitForNotification();
                           has_ended_.Notify();
                         })
                    .ok());
    begun_.WaitForNotification();
  }
  ~Held() {
    End();
    has_ended_.WaitForNotification();
  }
  void End() {
    if (!end_.HasBeenNotified()) end_.Notify();
  }

 private:
  absl::Notification begun_;
  absl::Notification end_;
  absl::Notification has_ended_;
};

TEST(WorkQueueTest, AClassRunsInOrder) {
  std::vector<int> order;
  {
    WorkQueue queue({.num_threads = 2});
    for (int i = 0; i < 4; ++i) {
      ASSERT_TRUE(queue.Add(kTokenization, nullptr, 1, [&order, i] { order.push_back(i); }).ok());
    }
  }
  EXPECT_THAT(order, ElementsAre(0, 1, 2, 3));
}

TEST(WorkQueueTest, RefusesWhenFullAndRunsWhatItTook) {
  std::atomic<int> num_run = 0;
  {
    WorkQueue queue({.num_threads = 2, .max_waiting = 2});
    const auto add = [&](WorkClass work_class) {
      return queue.Add(work_class, nullptr, 1, [&] { ++num_run; });
    };
    Held first(queue, kGeneration);
    Held second(queue, kGeneration);
    EXPECT_TRUE(add(kGeneration).ok());
    EXPECT_TRUE(add(kGeneration).ok());
    const absl::Status refused = add(kGeneration);
    EXPECT_TRUE(absl::IsResourceExhausted(refused));
    EXPECT_EQ(ReasonOf(refused), kQueueFullReason);
    // The other class has its own room.
    EXPECT_TRUE(add(kTokenization).ok());
    EXPECT_TRUE(add(kTokenization).ok());
    EXPECT_FALSE(add(kTokenization).ok());
    first.End();
    second.End();
  }
  EXPECT_EQ(num_run, 4);
}

TEST(WorkQueueTest, BytesThatWaitAreBounded) {
  WorkQueue queue({.num_threads = 2, .max_waiting_bytes = 100});
  const auto add = [&](size_t num_bytes) {
    return queue.Add(kTokenization, nullptr, num_bytes, [] {});
  };
  Held running(queue, kTokenization);
  EXPECT_TRUE(add(60).ok());
  EXPECT_TRUE(add(40).ok());
  const absl::Status refused = add(1);
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_EQ(ReasonOf(refused), kQueuedBytesFullReason);
  running.End();
}

TEST(WorkQueueTest, WorkBeyondTheBoundIsTakenWhenNothingElseWaits) {
  WorkQueue queue({.num_threads = 2, .max_waiting_bytes = 100});
  Held running(queue, kTokenization);
  EXPECT_TRUE(queue.Add(kTokenization, nullptr, 1000, [] {}).ok());
  EXPECT_FALSE(queue.Add(kTokenization, nullptr, 1000, [] {}).ok());
  running.End();
}

TEST(WorkQueueTest, GenerationGoesBeforeTokenizationThatCameEarlier) {
  std::vector<int> order;
  {
    WorkQueue queue({.num_threads = 2});
    // Of the two threads one is generation's; it is held up, so that all that follows takes turns.
    Held held(queue, kGeneration);
    Held tokenizing(queue, kTokenization);
    absl::Notification done;
    ASSERT_TRUE(queue.Add(kTokenization, nullptr, 1, [&] { order.push_back(3); }).ok());
    ASSERT_TRUE(queue.Add(kGeneration, nullptr, 1, [&] { order.push_back(1); }).ok());
    ASSERT_TRUE(queue
                    .Add(kGeneration, nullptr, 1,
                         [&] {
                           order.push_back(2);
                           done.Notify();
                         })
                    .ok());
    tokenizing.End();
    done.WaitForNotification();
    held.End();
  }
  EXPECT_THAT(order, ElementsAre(1, 2, 3));
}

TEST(WorkQueueTest, TokenizationLeavesAThreadFree) {
  WorkQueue queue({.num_threads = 2});
  Held tokenizing(queue, kTokenization);
  absl::Notification tokenized;
  ASSERT_TRUE(queue.Add(kTokenization, nullptr, 1, [&] { tokenized.Notify(); }).ok());
  for (int i = 0; i < 3; ++i) {
    absl::Notification generated;
    ASSERT_TRUE(queue.Add(kGeneration, nullptr, 1, [&] { generated.Notify(); }).ok());
    generated.WaitForNotification();
  }
  EXPECT_FALSE(tokenized.HasBeenNotified());
  tokenizing.End();
  tokenized.WaitForNotification();
}

TEST(WorkQueueTest, WorkThatIsTakenBackMakesRoomAndDoesNotRun) {
  WorkQueue queue({.num_threads = 2, .max_waiting = 1, .max_waiting_bytes = 100});
  int owner = 0;
  bool has_run = false;
  Held running(queue, kTokenization);
  ASSERT_TRUE(queue.Add(kTokenization, &owner, 100, [&] { has_run = true; }).ok());
  const auto work = queue.Take(&owner);
  ASSERT_NE(work, nullptr);
  EXPECT_EQ(queue.Take(&owner), nullptr);
  absl::Notification next;
  EXPECT_TRUE(queue.Add(kTokenization, nullptr, 100, [&] { next.Notify(); }).ok());
  running.End();
  next.WaitForNotification();
  EXPECT_FALSE(has_run);
  work();
  EXPECT_TRUE(has_run);
}

}  // namespace
}  // namespace ultrasketch
