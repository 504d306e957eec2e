// Who is next: the order of waiting sequences, by priority, ageing, and fairness between clients.
//
// Waiting sequences stand in lanes, one for each priority and client, in order of arrival. Lanes
// are served in order of
//   1. their effective priority: the priority, less what the lane has gained by waiting. A lane
//   that
//      has sequences waiting and none running gains with every step: 2^k - 1 levels after
//      k * ageing_steps steps. It is ahead of any other priority p levels better, then, after
//      ageing_steps * log2(p + 1) steps: nothing starves, however good the others' priorities are;
//   2. what their client has got: tokens of prompts computed for it and tokens generated, as a
//      virtual counter (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). The
//      client with the least is next. A client that comes back to a busy queue begins at the least
//      counter of those there, if its own is less: being away earns nothing;
//   3. arrival.
//
// A sequence keeps the effective priority that it was admitted with while it runs, and goes on from
// there when it is preempted.
//
// With L lanes, C clients and W waiting sequences: a pass begins in O(L) and gives each sequence in
// O(log L); the rest takes O(log L + log W), and the first sequence of a client O(C).
#ifndef ULTRASKETCH_ENGINE_SERVING_SCHEDULER_WAITING_QUEUE_H_
#define ULTRASKETCH_ENGINE_SERVING_SCHEDULER_WAITING_QUEUE_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "engine/serving/scheduler/sequence.h"

namespace ultrasketch {

struct WaitingClient {
  int64_t num_tokens = 0;  // the virtual counter
  int64_t num_sequences = 0;
};

struct WaitingLane {
  std::map<uint64_t, SchedulerSequence*> waiting;  // by arrival
  int64_t num_running = 0;
  int64_t ages_since = 0;  // the step; valid while some wait and none runs
  WaitingClient* client = nullptr;

  int64_t AgeAt(int64_t step) const {
    return num_running > 0 || waiting.empty() ? 0 : step - ages_since;
  }
};

// The priority of a sequence or lane that has waited for this many steps.
int64_t EffectivePriority(int32_t priority, int64_t waited_steps, int64_t ageing_steps);

// Knows the running sequences, too: their lanes do not age. Steps are the caller's count. Pure and
// not thread-safe; the sequences are the caller's.
class WaitingQueue {
 public:
  explicit WaitingQueue(int64_t ageing_steps);

  WaitingQueue(const WaitingQueue&) = delete;
  WaitingQueue& operator=(const WaitingQueue&) = delete;

  // A new sequence waits.
  void Add(SchedulerSequence* sequence, int64_t step);
  // A sequence leaves for good, waiting or running.
  void Remove(SchedulerSequence* sequence, int64_t step);

  // A waiting sequence begins to run, at the cost of computing `num_tokens` tokens; sets its
  // effective_priority.
  void Start(SchedulerSequence* sequence, int64_t num_tokens, int64_t step);
  // A running one waits again.
  void Preempt(SchedulerSequence* sequence, int64_t step);
  // `num_tokens` more were computed for the sequence's client.
  void Charge(const SchedulerSequence& sequence, int64_t num_tokens);

  // What Start would set.
  int64_t EffectivePriorityAt(const SchedulerSequence& sequence, int64_t step) const;

  int64_t num_waiting() const { return num_waiting_; }
  int64_t num_clients() const { return static_cast<int64_t>(clients_.size()); }  // remembered
  // Best priority of those that wait, regardless of ageing. Some must.
  int32_t best_priority() const { return num_waiting_by_priority_.begin()->first; }

  // The waiting sequences in order. While it is in use sequences may be started and preempted:
  // those started count at once, those preempted are not seen unless they stand behind.
  class Pass {
   public:
    Pass(WaitingQueue& queue, int64_t step);
    SchedulerSequence* Next();  // null at the end

   private:
    struct Place {
      int64_t effective_priority;
      int64_t client_tokens;
      uint64_t arrival;
      WaitingLane* lane;
      std::map<uint64_t, SchedulerSequence*>::iterator next;

      bool IsAfter(const Place& other) const;
    };
    void Push(Place place);

    const WaitingQueue& queue_;
    const int64_t step_;
    std::vector<Place> heap_;
  };

 private:
  using LaneKey = std::pair<int32_t, std::string>;  // priority, client

  void Wait(SchedulerSequence* sequence, int64_t step);
  void StopWaiting(SchedulerSequence* sequence);
  void StopRunning(SchedulerSequence* sequence, int64_t step);
  void EraseIfEmpty(SchedulerSequence* sequence);
  WaitingClient* Arrive(const std::string& client);
  void Leave(const std::string& client);

  const int64_t ageing_steps_;
  std::map<LaneKey, WaitingLane> lanes_;
  std::map<std::string, WaitingClient> clients_;
  int64_t num_absent_clients_ = 0;  // in clients_, without sequences
  std::map<int32_t, int64_t> num_waiting_by_priority_;
  int64_t num_waiting_ = 0;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_SERVING_SCHEDULER_WAITING_QUEUE_H_
