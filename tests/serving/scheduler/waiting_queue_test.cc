#include "engine/serving/scheduler/waiting_queue.h"

#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

constexpr int64_t kAgeingSteps = 10;

class WaitingQueueTest : public ::testing::Test {
 protected:
  WaitingQueueTest() : queue_(kAgeingSteps) {}

  // Sequences are called by one letter each.
  void Add(char name, int32_t priority = 0, const std::string& client = "") {
    auto sequence = std::make_unique<SchedulerSequence>();
    sequence->id = static_cast<SequenceId>(name);
    sequence->priority = priority;
    sequence->client = client;
    sequence->arrival = next_arrival_++;
    queue_.Add(sequence.get(), step_);
    sequences_[name] = std::move(sequence);
  }
  void Remove(char name) {
    queue_.Remove(sequences_[name].get(), step_);
    sequences_.erase(name);
  }
  void Start(char name, int64_t num_tokens = 1) {
    queue_.Start(sequences_[name].get(), num_tokens, step_);
  }
  void Preempt(char name) { queue_.Preempt(sequences_[name].get(), step_); }

  // Those waiting, in order.
  std::string Order() {
    std::string names;
    WaitingQueue::Pass pass(queue_, step_);
    while (const SchedulerSequence* sequence = pass.Next()) {
      names += static_cast<char>(sequence->id);
    }
    return names;
  }

  // Starts each as it comes, at a cost of so many tokens.
  std::string OrderOfService(int64_t num_tokens) {
    std::string names;
    WaitingQueue::Pass pass(queue_, step_);
    while (SchedulerSequence* sequence = pass.Next()) {
      names += static_cast<char>(sequence->id);
      queue_.Start(sequence, num_tokens, step_);
    }
    return names;
  }

  WaitingQueue queue_;
  int64_t step_ = 0;
  uint64_t next_arrival_ = 0;
  std::map<char, std::unique_ptr<SchedulerSequence>> sequences_;
};

TEST_F(WaitingQueueTest, IsEmptyAtFirst) {
  EXPECT_EQ(Order(), "");
  EXPECT_EQ(queue_.num_waiting(), 0);
}

TEST_F(WaitingQueueTest, OrdersByPriorityThenArrival) {
  Add('a', 1);
  Add('b', 0);
  Add('c', 1);
  Add('d', -5);
  EXPECT_EQ(Order(), "dbac");
  EXPECT_EQ(queue_.best_priority(), -5);
  Remove('d');
  EXPECT_EQ(queue_.best_priority(), 0);
  EXPECT_EQ(queue_.num_waiting(), 3);
}

TEST_F(WaitingQueueTest, APreemptedSequenceGoesBackToItsPlace) {
  Add('a');
  Add('b');
  Start('a');
  Add('c');
  EXPECT_EQ(Order(), "bc");
  Preempt('a');
  EXPECT_EQ(Order(), "abc");
}

TEST_F(WaitingQueueTest, PriorityGrowsWithTheLogarithmOfTheDifference) {
  EXPECT_EQ(EffectivePriority(5, 0, 10), 5);
  EXPECT_EQ(EffectivePriority(5, 9, 10), 5);
  EXPECT_EQ(EffectivePriority(5, 10, 10), 4);
  EXPECT_EQ(EffectivePriority(5, 20, 10), 2);
  EXPECT_EQ(EffectivePriority(5, 40, 10), -10);
  // The worst there is comes before the best.
  EXPECT_LT(EffectivePriority(std::numeric_limits<int32_t>::max(), 330, 10),
            std::numeric_limits<int32_t>::min());
  EXPECT_LT(EffectivePriority(std::numeric_limits<int32_t>::max(),
                              std::numeric_limits<int64_t>::max(), 1),
            std::numeric_limits<int32_t>::min());
}

TEST_F(WaitingQueueTest, AWorsePriorityIsNotPassedForEver) {
  Add('a', 3);
  step_ = 19;
  Add('b', 0);
  EXPECT_EQ(Order(), "ba");
  step_ = 20;  // three levels; it is older, too
  EXPECT_EQ(Order(), "ab");
}

TEST_F(WaitingQueueTest, APriorityThatIsServedDoesNotAge) {
  Add('a', 1);
  Add('b', 1);
  Start('a');
  step_ = 500;
  Add('c', 0);
  EXPECT_EQ(Order(), "cb");
  Remove('a');
  EXPECT_EQ(Order(), "cb");
  Remove('c');
  step_ = 510;
  Add('d', 0);
  EXPECT_EQ(Order(), "bd");
}

TEST_F(WaitingQueueTest, KeepsWhatItGainedWhenItIsPreempted) {
  Add('a', 3);
  step_ = 20;
  Start('a');
  EXPECT_EQ(sequences_['a']->effective_priority, 0);
  step_ = 300;
  Preempt('a');
  EXPECT_EQ(queue_.EffectivePriorityAt(*sequences_['a'], step_), 0);
  step_ = 310;
  EXPECT_EQ(queue_.EffectivePriorityAt(*sequences_['a'], step_), 3 - 7);
}

TEST_F(WaitingQueueTest, ManyRequestsOfOneClientDoNotStandBeforeAnothersOne) {
  for (char name = 'a'; name <= 'f'; ++name) Add(name, 0, "busy");
  Add('z', 0, "calm");
  EXPECT_EQ(OrderOfService(10), "azbcdef");
}

TEST_F(WaitingQueueTest, ClientsGetEqualTokensNotEqualRequests) {
  for (char name = 'a'; name <= 'c'; ++name) Add(name, 0, "long");
  for (char name = 'u'; name <= 'z'; ++name) Add(name, 0, "short");
  std::string names;
  WaitingQueue::Pass pass(queue_, step_);
  while (SchedulerSequence* sequence = pass.Next()) {
    names += static_cast<char>(sequence->id);
    queue_.Start(sequence, sequence->client == "long" ? 30 : 10, step_);
  }
  EXPECT_EQ(names, "auvwbxyzc");
}

TEST_F(WaitingQueueTest, FairnessDoesNotReachAcrossPriorities) {
  Add('a', 0, "busy");
  Start('a', 1000);
  Add('b', 0, "busy");
  Add('c', 1, "calm");
  EXPECT_EQ(Order(), "bc");
}

TEST_F(WaitingQueueTest, GeneratedTokensCount) {
  Add('a', 0, "x");
  Add('b', 0, "y");
  Start('a', 5);
  Start('b', 5);
  queue_.Charge(*sequences_['a'], 1);
  Add('c', 0, "x");
  Add('d', 0, "y");
  EXPECT_EQ(Order(), "dc");
}

TEST_F(WaitingQueueTest, BeingAwayEarnsNothingAndForgivesNothing) {
  Add('a', 0, "busy");
  Start('a', 100);
  Add('b', 0, "guest");
  Start('b', 50);  // on top of the 100 of who was there
  Remove('b');
  Add('c', 0, "busy");
  Add('d', 0, "guest");
  EXPECT_EQ(Order(), "cd");
  Add('e', 0, "new");
  Start('e', 7);
  Add('f', 0, "new");
  EXPECT_EQ(Order(), "cfd");
}

TEST_F(WaitingQueueTest, ForgetsEverybodyWhenNobodyIsLeft) {
  Add('a', 0, "x");
  Start('a', 1000);
  Remove('a');
  Add('b', 0, "x");
  Add('c', 0, "y");
  EXPECT_EQ(Order(), "bc");
}

TEST_F(WaitingQueueTest, ManyClientsThatCameAndWentAreForgotten) {
  Add('a', 0, "stays");
  for (int i = 0; i < 5000; ++i) {
    Add('b', 0, absl::StrCat("client ", i));
    Remove('b');
  }
  EXPECT_EQ(Order(), "a");
  EXPECT_LE(queue_.num_clients(), 1100);
}

}  // namespace
}  // namespace ultrasketch
