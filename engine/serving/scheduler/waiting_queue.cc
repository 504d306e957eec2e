#include "engine/serving/scheduler/waiting_queue.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "engine/base/check.h"

namespace ultrasketch {
namespace {

// What clients that are away have got is remembered for this many of them.
constexpr int64_t kMaxAbsentClients = 1024;

}  // namespace

int64_t EffectivePriority(int32_t priority, int64_t waited_steps, int64_t ageing_steps) {
  // 33 doublings are ahead of any difference of two priorities.
  const int64_t num_doublings = std::min<int64_t>(33, waited_steps / ageing_steps);
  return priority - ((int64_t{1} << num_doublings) - 1);
}

WaitingQueue::WaitingQueue(int64_t ageing_steps) : ageing_steps_(ageing_steps) {
  US_CHECK(ageing_steps >= 1);
}

void WaitingQueue::Add(SchedulerSequence* sequence, int64_t step) {
  WaitingClient* client = Arrive(sequence->client);
  WaitingLane& lane = lanes_[{sequence->priority, sequence->client}];
  lane.client = client;
  sequence->lane = &lane;
  Wait(sequence, step);
}

void WaitingQueue::Remove(SchedulerSequence* sequence, int64_t step) {
  if (sequence->is_running) {
    StopRunning(sequence, step);
  } else {
    StopWaiting(sequence);
  }
  EraseIfEmpty(sequence);
  Leave(sequence->client);
}

void WaitingQueue::Start(SchedulerSequence* sequence, int64_t num_tokens, int64_t step) {
  sequence->effective_priority = EffectivePriorityAt(*sequence, step);
  sequence->waited_steps = std::max(sequence->waited_steps, sequence->lane->AgeAt(step));
  StopWaiting(sequence);
  ++sequence->lane->num_running;
  sequence->is_running = true;
  Charge(*sequence, num_tokens);
}

void WaitingQueue::Preempt(SchedulerSequence* sequence, int64_t step) {
  StopRunning(sequence, step);
  sequence->is_running = false;
  Wait(sequence, step);
}

void WaitingQueue::Charge(const SchedulerSequence& sequence, int64_t num_tokens) {
  sequence.lane->client->num_tokens += num_tokens;
}

int64_t WaitingQueue::EffectivePriorityAt(const SchedulerSequence& sequence, int64_t step) const {
  return EffectivePriority(sequence.priority,
                           std::max(sequence.waited_steps, sequence.lane->AgeAt(step)),
                           ageing_steps_);
}

void WaitingQueue::Wait(SchedulerSequence* sequence, int64_t step) {
  WaitingLane& lane = *sequence->lane;
  const int64_t since = step - sequence->waited_steps;
  lane.ages_since = lane.waiting.empty() ? since : std::min(lane.ages_since, since);
  lane.waiting.emplace(sequence->arrival, sequence);
  ++num_waiting_by_priority_[sequence->priority];
  ++num_waiting_;
}

void WaitingQueue::StopWaiting(SchedulerSequence* sequence) {
  sequence->lane->waiting.erase(sequence->arrival);
  const auto found = num_waiting_by_priority_.find(sequence->priority);
  if (--found->second == 0) num_waiting_by_priority_.erase(found);
  --num_waiting_;
}

void WaitingQueue::StopRunning(SchedulerSequence* sequence, int64_t step) {
  WaitingLane& lane = *sequence->lane;
  if (--lane.num_running == 0 && !lane.waiting.empty()) {
    lane.ages_since = step - lane.waiting.begin()->second->waited_steps;
  }
}

void WaitingQueue::EraseIfEmpty(SchedulerSequence* sequence) {
  if (sequence->lane->num_running > 0 || !sequence->lane->waiting.empty()) return;
  lanes_.erase({sequence->priority, sequence->client});
  sequence->lane = nullptr;
}

WaitingClient* WaitingQueue::Arrive(const std::string& name) {
  const auto [found, is_new] = clients_.try_emplace(name);
  WaitingClient& client = found->second;
  if (client.num_sequences++ > 0) return &client;
  if (!is_new) --num_absent_clients_;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (const auto& [other_name, other] : clients_) {
    if (other.num_sequences > 0 && &other != &client) least = std::min(least, other.num_tokens);
  }
  if (least != std::numeric_limits<int64_t>::max()) {
    client.num_tokens = std::max(client.num_tokens, least);
  }
  return &client;
}

void WaitingQueue::Leave(const std::string& name) {
  if (--clients_.find(name)->second.num_sequences > 0) return;
  ++num_absent_clients_;
  if (lanes_.empty()) {
    // Nobody is left for whom it could matter.
    clients_.clear();
    num_absent_clients_ = 0;
  } else if (num_absent_clients_ > kMaxAbsentClients) {
    std::erase_if(clients_, [](const auto& entry) { return entry.second.num_sequences == 0; });
    num_absent_clients_ = 0;
  }
}

bool WaitingQueue::Pass::Place::IsAfter(const Place& other) const {
  return std::tie(effective_priority, client_tokens, arrival) >
         std::tie(other.effective_priority, other.client_tokens, other.arrival);
}

WaitingQueue::Pass::Pass(WaitingQueue& queue, int64_t step) : queue_(queue), step_(step) {
  for (auto& [key, lane] : queue.lanes_) {
    if (lane.waiting.empty()) continue;
    const auto first = lane.waiting.begin();
    heap_.push_back({EffectivePriority(key.first, lane.AgeAt(step), queue.ageing_steps_),
                     lane.client->num_tokens, first->first, &lane, first});
  }
  std::make_heap(heap_.begin(), heap_.end(),
                 [](const Place& a, const Place& b) { return a.IsAfter(b); });
}

void WaitingQueue::Pass::Push(Place place) {
  heap_.push_back(place);
  std::push_heap(heap_.begin(), heap_.end(),
                 [](const Place& a, const Place& b) { return a.IsAfter(b); });
}

SchedulerSequence* WaitingQueue::Pass::Next() {
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(),
                  [](const Place& a, const Place& b) { return a.IsAfter(b); });
    Place place = heap_.back();
    heap_.pop_back();
    SchedulerSequence* sequence = place.next->second;
    // Places only get worse within a pass, by what was started meanwhile.
    place.client_tokens = place.lane->client->num_tokens;
    place.effective_priority = std::max(
        place.effective_priority,
        EffectivePriority(sequence->priority, place.lane->AgeAt(step_), queue_.ageing_steps_));
    if (!heap_.empty() && place.IsAfter(heap_.front())) {
      Push(place);
      continue;
    }
    if (++place.next != place.lane->waiting.end()) {
      place.arrival = place.next->first;
      Push(place);
    }
    return sequence;
  }
  return nullptr;
}

}  // namespace ultrasketch
