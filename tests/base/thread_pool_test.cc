#include "engine/base/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "engine/base/shared_loop.h"

namespace ultrasketch {
namespace {

struct Range {
  int64_t begin;
  int64_t end;
  int thread;
  friend bool operator==(const Range&, const Range&) = default;
};

std::vector<Range> RangesOf(ThreadPool& pool, int64_t num_items, int64_t grain) {
  std::vector<Range> ranges;
  std::mutex mutex;
  pool.ParallelFor(num_items, grain, [&](int64_t begin, int64_t end, int thread) {
    const std::lock_guard lock(mutex);
    ranges.push_back({begin, end, thread});
  });
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  return ranges;
}

TEST(ThreadPoolTest, RangesAreDisjointCoverAllAndRespectTheGrain) {
  for (const int num_threads : {1, 2, 3, 4, 7}) {
    ThreadPool pool(num_threads);
    EXPECT_EQ(pool.num_threads(), num_threads);
    for (const int64_t num_items : {1, 2, 3, 5, 8, 63, 64, 65, 1000}) {
      for (const int64_t grain : {1, 2, 3, 16, 64, 5000}) {
        const std::vector<Range> ranges = RangesOf(pool, num_items, grain);
        int64_t next = 0;
        for (const Range& range : ranges) {
          EXPECT_EQ(range.begin, next);
          EXPECT_LT(range.begin, range.end);
          EXPECT_EQ(range.begin % grain, 0);
          EXPECT_GE(range.thread, 0);
          EXPECT_LT(range.thread, num_threads);
          next = range.end;
        }
        EXPECT_EQ(next, num_items);
        EXPECT_EQ(RangesOf(pool, num_items, grain), ranges) << "not the same every time";
      }
    }
  }
}

TEST(ThreadPoolTest, NoItemsMeansNoCalls) {
  ThreadPool pool(3);
  for (const int64_t num_items : {int64_t{0}, int64_t{-1}, int64_t{-1} << 40}) {
    EXPECT_TRUE(RangesOf(pool, num_items, 4).empty());
  }
}

TEST(ThreadPoolTest, AGrainBelowOneCountsAsOne) {
  ThreadPool pool(4);
  EXPECT_EQ(RangesOf(pool, 10, 0), RangesOf(pool, 10, 1));
  EXPECT_EQ(RangesOf(pool, 10, -5), RangesOf(pool, 10, 1));
}

TEST(ThreadPoolTest, ItemsNearTheLimitOfInt64DoNotOverflow) {
  ThreadPool pool(3);
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  for (const int64_t grain : {int64_t{1}, int64_t{1} << 40, kMost}) {
    int64_t covered = 0;
    for (const Range& range : RangesOf(pool, kMost, grain)) covered += range.end - range.begin;
    EXPECT_EQ(covered, kMost);
  }
}

TEST(ThreadPoolTest, SpreadsWorkOverAllThreads) {
  ThreadPool pool(4);
  const std::vector<Range> ranges = RangesOf(pool, 400, 1);
  ASSERT_EQ(ranges.size(), 4u);
  for (const Range& range : ranges) EXPECT_EQ(range.end - range.begin, 100);
}

TEST(ThreadPoolTest, SmallLoopsRunOnTheCallingThread) {
  ThreadPool pool(4);
  const std::thread::id caller = std::this_thread::get_id();
  pool.ParallelFor(10, 16, [&](int64_t begin, int64_t end, int thread) {
    EXPECT_EQ(begin, 0);
    EXPECT_EQ(end, 10);
    EXPECT_EQ(thread, 0);
    EXPECT_EQ(std::this_thread::get_id(), caller);
  });
}

TEST(ThreadPoolTest, WhatALoopWroteIsVisibleAfterIt) {
  ThreadPool pool(4);
  std::vector<int64_t> values(1000);  // plain memory: ThreadSanitizer sees a missing edge
  for (int64_t round = 1; round <= 2000; ++round) {
    pool.ParallelFor(1000, 8, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) values[static_cast<size_t>(i)] += i;
    });
    ASSERT_EQ(values[999], 999 * round);
    ASSERT_EQ(values[500], 500 * round);
  }
}

TEST(ThreadPoolTest, NoTwoCallsShareAThreadNumberAtATime) {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> active(4);
  std::vector<int64_t> scratch(4);  // plain memory again
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 500; ++round) {
        pool.ParallelFor(64, 1, [&](int64_t begin, int64_t end, int thread) {
          EXPECT_EQ(active[static_cast<size_t>(thread)].fetch_add(1), 0);
          scratch[static_cast<size_t>(thread)] += end - begin;
          active[static_cast<size_t>(thread)].fetch_sub(1);
        });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(scratch[0] + scratch[1] + scratch[2] + scratch[3], 3 * 500 * 64);
}

TEST(ThreadPoolTest, WakesSleepingWorkers) {
  ThreadPool pool(4);
  for (int round = 0; round < 20; ++round) {
    // Longer than workers spin, so that some loops start with all of them asleep.
    std::this_thread::sleep_for(std::chrono::milliseconds(round % 2 == 0 ? 2 : 0));
    std::atomic<int64_t> sum{0};
    pool.ParallelFor(4, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) sum += i;
    });
    EXPECT_EQ(sum, 6);
  }
}

TEST(ThreadPoolTest, PoolsComeAndGo) {
  for (int round = 0; round < 200; ++round) {
    ThreadPool pool(3);
    if (round % 3 == 0) continue;  // destroyed without ever having run a loop
    int64_t sums[3] = {};
    pool.ParallelFor(30, 1,
                     [&](int64_t begin, int64_t end, int thread) { sums[thread] += end - begin; });
    EXPECT_EQ(sums[0] + sums[1] + sums[2], 30);
  }
}

TEST(ThreadPoolTest, DefaultUsesTheAvailableCpus) {
  EXPECT_GE(AvailableCpus(), 1);
  EXPECT_EQ(ThreadPool().num_threads(), AvailableCpus());
}

TEST(SharedLoopTest, TakesEveryItemOnceInRangesOfWholeGrains) {
  for (const int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads);
    for (const int64_t grain : {1, 16}) {
      for (const int64_t num_items : {0, 1, 15, 16, 17, 100, 4001}) {
        std::vector<std::atomic<int>> counts(static_cast<size_t>(num_items));
        SharedLoop(pool, num_items, grain, [&](const auto& take) {
          int64_t begin;
          int64_t end;
          while (take(&begin, &end)) {
            EXPECT_EQ(begin % grain, 0);
            EXPECT_TRUE(end % grain == 0 || end == num_items);
            for (int64_t i = begin; i < end; ++i) ++counts[static_cast<size_t>(i)];
          }
        });
        for (const std::atomic<int>& count : counts) EXPECT_EQ(count.load(), 1);
      }
    }
  }
}

// While one thread is held up in its first range, the others do the rest.
TEST(SharedLoopTest, GivesAThreadThatIsHeldUpLess) {
  ThreadPool pool(2);
  std::atomic<int64_t> done{0};
  std::atomic<bool> is_first{true};
  SharedLoop(pool, 1000, 1, [&](const auto& take) {
    int64_t begin;
    int64_t end;
    while (take(&begin, &end)) {
      const int64_t count = end - begin;
      if (is_first.exchange(false)) {
        while (done.load() < 1000 - count) std::this_thread::yield();
      }
      done += count;
    }
  });
  EXPECT_EQ(done.load(), 1000);
}

}  // namespace
}  // namespace ultrasketch
