#include "server/work_queue.h"

#include <atomic>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;

TEST(WorkQueueTest, RunsInOrder) {
  std::vector<int> order;
  {
    WorkQueue queue(1, 10);
    for (int i = 0; i < 4; ++i) {
      ASSERT_TRUE(queue.TryAdd([&order, i] { order.push_back(i); }));
    }
  }
  EXPECT_THAT(order, ElementsAre(0, 1, 2, 3));
}

TEST(WorkQueueTest, RefusesWhenFullAndRunsWhatItTook) {
  std::atomic<int> num_run = 0;
  {
    absl::Notification started;
    absl::Notification finish;
    WorkQueue queue(1, 2);
    ASSERT_TRUE(queue.TryAdd([&] {
      started.Notify();
      finish.WaitForNotification();
    }));
    started.WaitForNotification();
    EXPECT_TRUE(queue.TryAdd([&] { ++num_run; }));
    EXPECT_TRUE(queue.TryAdd([&] { ++num_run; }));
    EXPECT_FALSE(queue.TryAdd([&] { ++num_run; }));
    finish.Notify();
  }
  EXPECT_EQ(num_run, 2);
}

}  // namespace
}  // namespace ultrasketch
