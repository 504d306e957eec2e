// A sequence's part of a step: what the scheduler decides and a model computes.
#ifndef ULTRASKETCH_ENGINE_KV_SEQUENCE_SLICE_H_
#define ULTRASKETCH_ENGINE_KV_SEQUENCE_SLICE_H_

#include <cstdint>

#include "absl/types/span.h"

#include "engine/kv/block_pool.h"

namespace ultrasketch {

// Refers to memory of whoever made it.
struct SequenceSlice {
  // The tokens whose keys and values the step computes, at least one: positions
  // [num_cached, num_cached + token_ids.size()).
  absl::Span<const int32_t> token_ids;

  // Tokens of the sequence that are in the cache already.
  int64_t num_cached = 0;

  // The sequence's cache blocks in order, enough for num_cached + token_ids.size() tokens.
  absl::Span<const BlockId> blocks;

  // Logits are computed for the last `num_logits` of token_ids, 0 to all. Decoding asks for 1, a
  // prefill chunk that is not the last for 0, scoring for all.
  int64_t num_logits = 1;

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
  int64_t end() const { return num_cached + num_tokens(); }  // position after the last token
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_KV_SEQUENCE_SLICE_H_
