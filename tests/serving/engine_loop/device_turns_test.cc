#include "engine/serving/engine_loop/device_turns.h"

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

constexpr absl::Duration kQuantum = DeviceTurns::kQuantum;

void AwaitWaiting(const DeviceTurns& turns, int num_members) {
  while (turns.num_waiting() < num_members) std::this_thread::yield();
}

// Runs members that always want the device, each on a thread, for steps of given lengths; records
// who computed.
class Contest {
 public:
  void Add(char name, double weight, absl::Duration step) {
    members_.push_back({name, turns_->Join(weight), step});
  }

  // The order of `num_steps` steps.
  std::string Run(size_t num_steps) {
    auto gate = turns_->Join();
    gate->Acquire();
    std::vector<std::thread> threads;
    for (Entry& entry : members_) {
      threads.emplace_back([&] {
        while (true) {
          entry.member->Acquire();
          if (order_.size() == num_steps) break;
          order_ += entry.name;
          AwaitWaiting(*turns_, static_cast<int>(members_.size()) - 1);
          entry.member->EndStep(entry.step);
        }
        entry.member->Release();
      });
    }
    AwaitWaiting(*turns_, static_cast<int>(members_.size()));
    gate->Release();
    for (std::thread& thread : threads) thread.join();
    return order_;
  }

 private:
  struct Entry {
    char name;
    std::unique_ptr<DeviceTurns::Member> member;
    absl::Duration step;
  };
  std::shared_ptr<DeviceTurns> turns_ = std::make_shared<DeviceTurns>();
  std::vector<Entry> members_;
  std::string order_;  // guarded by the turns
};

double Share(const std::string& order, char name) {
  return static_cast<double>(std::count(order.begin(), order.end(), name)) /
         static_cast<double>(order.size());
}

TEST(DeviceTurnsTest, AMemberAloneNeverWaits) {
  auto turns = std::make_shared<DeviceTurns>();
  auto member = turns->Join();
  for (int i = 0; i < 3; ++i) {
    member->Acquire();
    member->EndStep(10 * kQuantum);
  }
  member->Release();
  member->Acquire();
}

TEST(DeviceTurnsTest, EqualWeightsGetEqualTime) {
  Contest contest;
  contest.Add('a', 1, kQuantum);
  contest.Add('b', 1, kQuantum / 4);
  // In time, not in steps: b has four short steps for each of a's.
  EXPECT_NEAR(Share(contest.Run(500), 'b'), 0.8, 0.03);
}

TEST(DeviceTurnsTest, TimeFollowsTheWeights) {
  Contest contest;
  contest.Add('a', 3, kQuantum);
  contest.Add('b', 1, kQuantum);
  EXPECT_NEAR(Share(contest.Run(400), 'a'), 0.75, 0.03);
}

TEST(DeviceTurnsTest, ShortStepsKeepTheDeviceForAQuantum) {
  Contest contest;
  contest.Add('a', 1, kQuantum / 8);
  contest.Add('b', 1, kQuantum / 8);
  const std::string order = contest.Run(800);
  size_t num_changes = 0;
  for (size_t i = 1; i < order.size(); ++i) num_changes += order[i] != order[i - 1] ? 1 : 0;
  EXPECT_LE(num_changes, 110u);  // 100 turns of 8 steps
}

TEST(DeviceTurnsTest, IdleTimeIsNotSavedUp) {
  auto turns = std::make_shared<DeviceTurns>();
  auto busy = turns->Join();
  auto idle = turns->Join();
  for (int i = 0; i < 1000; ++i) {
    busy->Acquire();
    busy->EndStep(kQuantum);
  }
  // What the idle one did not use in a thousand turns is worth no more than one.
  std::string order;
  std::thread thread([&] {
    for (int i = 0; i < 5; ++i) {
      idle->Acquire();
      order += 'i';
      AwaitWaiting(*turns, 1);
      idle->EndStep(kQuantum);
    }
    idle->Release();
  });
  for (int i = 0; i < 5; ++i) {
    AwaitWaiting(*turns, 1);
    busy->EndStep(kQuantum);
    busy->Acquire();
    order += 'b';
  }
  busy->Release();
  thread.join();
  EXPECT_EQ(order, "ibibibibib");
}

TEST(DeviceTurnsTest, AMemberThatGoesGivesTheDeviceBack) {
  auto turns = std::make_shared<DeviceTurns>();
  auto first = turns->Join();
  auto second = turns->Join();
  first->Acquire();
  first = nullptr;
  second->Acquire();
}

}  // namespace
}  // namespace ultrasketch
