// A sequence as the scheduler holds it.
#ifndef ULTRASKETCH_ENGINE_SERVING_SCHEDULER_SEQUENCE_H_
#define ULTRASKETCH_ENGINE_SERVING_SCHEDULER_SEQUENCE_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/kv/block_pool.h"

namespace ultrasketch {

using SequenceId = uint64_t;

struct WaitingLane;

struct SchedulerSequence {
  SequenceId id = 0;
  int32_t priority = 0;  // lower is served first
  std::string client;
  uint64_t arrival = 0;

  int64_t max_num_tokens = 0;
  std::vector<int32_t> token_ids;
  int64_t num_submitted_tokens = 0;  // the rest was appended
  int64_t num_computed = 0;          // of token_ids, in the cache
  int64_t next_logit_position = 0;   // logits before it are not wanted or were given
  std::vector<BlockId> blocks;       // none while it waits
  int64_t num_registered = 0;        // of blocks, in the prefix cache
  int64_t num_expected_cached = 0;   // tokens that the prefix cache held when last asked
  bool was_admitted = false;
  bool is_running = false;
  int64_t num_passed = 0;  // admissions past it, see scheduler.h

  // Kept by WaitingQueue.
  WaitingLane* lane = nullptr;
  int64_t waited_steps = 0;        // what it has earned by waiting, as of its last admission
  int64_t effective_priority = 0;  // as of its last admission

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
  int64_t num_missing() const { return num_tokens() - num_computed; }
};

// The order of running sequences, for tokens and for memory.
inline bool IsServedBefore(const SchedulerSequence* a, const SchedulerSequence* b) {
  return std::pair(a->effective_priority, a->arrival) <
         std::pair(b->effective_priority, b->arrival);
}

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_SERVING_SCHEDULER_SEQUENCE_H_
