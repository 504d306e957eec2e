#include "server/refusal_pacer.h"

#include <atomic>
#include <memory>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

// Long enough that nothing of a test happens to be due.
constexpr absl::Duration kForever = absl::Hours(1);

class Refused final : public RefusedCall {
 public:
  void AnswerRefusal() override {
    EXPECT_FALSE(answered_.HasBeenNotified());
    answered_.Notify();
  }
  bool is_answered() const { return answered_.HasBeenNotified(); }
  void Wait() const { answered_.WaitForNotification(); }

 private:
  absl::Notification answered_;
};

std::vector<std::shared_ptr<Refused>> AddSome(RefusalPacer& pacer, int count) {
  std::vector<std::shared_ptr<Refused>> calls;
  for (int i = 0; i < count; ++i) {
    calls.push_back(std::make_shared<Refused>());
    pacer.Add(calls.back());
  }
  return calls;
}

int NumAnswered(const std::vector<std::shared_ptr<Refused>>& calls) {
  int num_answered = 0;
  for (const auto& call : calls) num_answered += call->is_answered() ? 1 : 0;
  return num_answered;
}

TEST(RefusalPacerTest, FewAreAnsweredAtOnce) {
  RefusalPacer pacer({.per_second = 1000, .max_pause = kForever});
  EXPECT_EQ(NumAnswered(AddSome(pacer, 50)), 50);
}

TEST(RefusalPacerTest, InAStormTheyWaitForTheirPause) {
  RefusalPacer pacer({.per_second = 0, .max_pause = absl::Milliseconds(40)});
  EXPECT_EQ(NumAnswered(AddSome(pacer, 1)), 1);  // one is never a storm
  const absl::Time begin = absl::Now();
  const auto calls = AddSome(pacer, 100);
  for (const auto& call : calls) call->Wait();
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(40));
}

TEST(RefusalPacerTest, ThoseThatWaitGoAsTheAllowanceGrows) {
  RefusalPacer pacer({.per_second = 500, .max_pause = kForever});
  for (const auto& call : AddSome(pacer, 100)) call->Wait();
}

TEST(RefusalPacerTest, NoMoreThanSoManyWait) {
  RefusalPacer pacer({.per_second = 0, .max_pause = kForever, .max_waiting = 3});
  EXPECT_EQ(NumAnswered(AddSome(pacer, 10)), 7);
}

TEST(RefusalPacerTest, WithoutAPauseNoneWaits) {
  RefusalPacer pacer({.per_second = 0, .max_pause = absl::ZeroDuration()});
  EXPECT_EQ(NumAnswered(AddSome(pacer, 10)), 10);
}

TEST(RefusalPacerTest, TheEndAnswersAllAndKeepsNone) {
  std::vector<std::shared_ptr<Refused>> calls;
  {
    RefusalPacer pacer({.per_second = 0, .max_pause = kForever});
    calls = AddSome(pacer, 10);
    EXPECT_EQ(NumAnswered(calls), 1);
  }
  EXPECT_EQ(NumAnswered(calls), 10);
  for (const auto& call : calls) EXPECT_EQ(call.use_count(), 1);
}

}  // namespace
}  // namespace ultrasketch
