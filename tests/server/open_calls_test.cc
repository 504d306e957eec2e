#include "server/open_calls.h"

#include <atomic>
#include <thread>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/strings.h"
#include "server/status.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;

class CountingCall final : public OpenCall {
 public:
  void CheckReader(absl::Time) override { ++num_checks; }
  std::atomic<int> num_checks = 0;
};

TEST(OpenCallsTest, AdmitsUpToTheLimitsOfTheServerAndOfEachClient) {
  prometheus::Gauge unread;
  CallLimits limits;
  limits.max_requests = 3;
  limits.max_requests_per_client = 2;
  OpenCalls calls(limits, unread);
  EXPECT_TRUE(calls.Admit("a").ok());
  EXPECT_TRUE(calls.Admit("a").ok());
  const absl::Status client_full = calls.Admit("a");
  EXPECT_TRUE(absl::IsResourceExhausted(client_full));
  EXPECT_EQ(ReasonOf(client_full), kClientFullReason);
  EXPECT_TRUE(calls.Admit("").ok());
  const absl::Status server_full = calls.Admit("b");
  EXPECT_TRUE(absl::IsResourceExhausted(server_full));
  EXPECT_EQ(ReasonOf(server_full), kServerFullReason);
  EXPECT_THAT(S(server_full.message()), HasSubstr("3 requests"));
  calls.Release("a", /*is_answered=*/false);
  EXPECT_TRUE(calls.Admit("b").ok());
  calls.Release("b", /*is_answered=*/false);
  EXPECT_TRUE(calls.Admit("a").ok());
}

TEST(OpenCallsTest, WhoIsAnsweredMayComeAgainUntilManyAnswersAreUnread) {
  prometheus::Gauge unread;
  CallLimits limits;
  limits.max_requests_per_client = 1;
  OpenCalls calls(limits, unread);
  int num_admitted = 0;
  absl::Status status;
  for (; num_admitted < 100; ++num_admitted) {
    status = calls.Admit("a");
    if (!status.ok()) break;
    EXPECT_FALSE(calls.Admit("a").ok());  // one at a time
    calls.Answer("a");
  }
  EXPECT_EQ(num_admitted, 17);
  EXPECT_EQ(ReasonOf(status), kClientFullReason);
  EXPECT_THAT(S(status.message()), HasSubstr("17 answers that were not read"));
  for (int i = 0; i < num_admitted; ++i) calls.Release("a", /*is_answered=*/true);
  EXPECT_TRUE(calls.Admit("a").ok());
}

TEST(OpenCallsTest, WaitsForThoseThatAreToBeWaitedFor) {
  prometheus::Gauge unread;
  OpenCalls calls({}, unread);
  CountingCall waited_for;
  CountingCall other;
  calls.Add(&other, /*is_waited_for=*/false);
  EXPECT_TRUE(calls.AwaitNone(absl::InfinitePast()));
  calls.Add(&waited_for, /*is_waited_for=*/true);
  EXPECT_FALSE(calls.AwaitNone(absl::Now() + absl::Milliseconds(1)));
  std::thread remove([&] { calls.Remove(&waited_for); });
  EXPECT_TRUE(calls.AwaitNone(absl::InfiniteFuture()));
  remove.join();
  calls.Remove(&other);
}

TEST(OpenCallsTest, LooksAtOpenCallsEveryNowAndThen) {
  prometheus::Gauge unread;
  CallLimits limits;
  limits.max_unread_time = absl::Milliseconds(1);
  OpenCalls calls(limits, unread);
  CountingCall call;
  calls.Add(&call, /*is_waited_for=*/true);
  while (call.num_checks < 3) std::this_thread::yield();
  calls.Remove(&call);
}

TEST(OpenCallsTest, RefusesAnswersWhileTooManyAreUnread) {
  prometheus::Gauge unread;
  CallLimits limits;
  limits.max_unread_answer_bytes = 100;
  OpenCalls calls(limits, unread);
  calls.AddUnreadBytes(1000);  // of streams
  EXPECT_TRUE(calls.CheckUnreadAnswers().ok());
  calls.AddUnreadAnswer(100);
  EXPECT_EQ(unread.Value(), 1100);
  const absl::Status status = calls.CheckUnreadAnswers();
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_EQ(ReasonOf(status), kUnreadAnswersReason);
  calls.AddUnreadAnswer(-100);
  EXPECT_TRUE(calls.CheckUnreadAnswers().ok());
  EXPECT_EQ(unread.Value(), 1000);
}

TEST(UnreadSinceTest, TellsHowLongSomethingHasBeenUnread) {
  UnreadSince unread;
  EXPECT_FALSE(unread.IsLongerThan(absl::ZeroDuration(), absl::Now()));
  unread.Begin();
  const absl::Time now = absl::Now();
  EXPECT_TRUE(unread.IsLongerThan(absl::Seconds(5), now + absl::Seconds(6)));
  EXPECT_FALSE(unread.IsLongerThan(absl::Hours(1), now));
  unread.End();
  EXPECT_FALSE(unread.IsLongerThan(absl::ZeroDuration(), now + absl::Hours(1)));
}

}  // namespace
}  // namespace ultrasketch
