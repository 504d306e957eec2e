#include "engine/backends/cuda/attention_plan.h"

#include <algorithm>

#include "engine/base/check.h"

namespace ultrasketch::cuda {
namespace {

// `count` rounded up to one of four numbers between two powers of two.
int64_t RoundUpItems(int64_t count) {
  int64_t step = 1;
  while (step * 8 <= count) step *= 2;
  return (count + step - 1) / step * step;
}

}  // namespace

void PlanAttention(const AttentionGeometry& geometry, absl::Span<const PlannedSpan> spans,
                   int64_t max_slots, int64_t max_attended_tokens, AttentionPlan& plan) {
  US_CHECK(max_slots >= 1 && max_attended_tokens >= kAttentionRows);
  plan.items.clear();
  plan.tokens.clear();
  plan.slabs.clear();
  plan.most_chunks = 0;
  plan.has_long_items = false;
  const int64_t tile_tokens = geometry.tokens_per_tile();
  int64_t num_chunk_items = 0;
  for (const PlannedSpan& span : spans) {
    if (span.num_tokens > tile_tokens) continue;
    num_chunk_items += NumAttentionChunks(span.num_cached + span.num_tokens);
  }
  plan.merges_chunks = num_chunk_items <= kMostMergedItems;
  AttentionSlab slab;
  std::vector<AttentionItem> prompt_items;  // of the slab
  int64_t slots = 0;
  const auto finish_slab = [&] {
    if (slab.num_tokens == 0) return;
    slab.num_items = RoundUpItems(slab.num_items);
    plan.items.resize(static_cast<size_t>(slab.first_item + slab.num_items));
    slab.num_prompt_items = RoundUpItems(static_cast<int64_t>(prompt_items.size()));
    prompt_items.resize(static_cast<size_t>(slab.num_prompt_items));
    plan.items.insert(plan.items.end(), prompt_items.begin(), prompt_items.end());
    plan.slabs.push_back(slab);
    slab = {.first_item = static_cast<int64_t>(plan.items.size()),
            .first_token = slab.first_token + slab.num_tokens};
    prompt_items.clear();
    slots = 0;
  };
  for (const PlannedSpan& span : spans) {
    const bool is_prompt = geometry.is_staged() && span.num_tokens > tile_tokens;
    const int64_t item_tokens =
        is_prompt ? std::min(tile_tokens * kPromptTiles, max_attended_tokens) : tile_tokens;
    for (int64_t first = 0; first < span.num_tokens; first += item_tokens) {
      const int64_t count = std::min(item_tokens, span.num_tokens - first);
      const int64_t num_chunks = NumAttentionChunks(span.num_cached + first + count);
      const bool side_by_side =
          span.num_tokens <= tile_tokens && num_chunks > 1 && num_chunks <= max_slots;
      if (slab.num_tokens + count > max_attended_tokens ||
          (side_by_side && slots + num_chunks > max_slots)) {
        finish_slab();
      }
      if (!side_by_side && num_chunks > 1) plan.has_long_items = true;
      AttentionItem item;
      item.first_token = static_cast<int32_t>(span.first_token + first);
      item.num_tokens = static_cast<int32_t>(count);
      item.num_keys = static_cast<int32_t>(span.num_cached + first + 1);
      item.first_block = static_cast<int32_t>(span.first_block);
      item.chunk = -1;
      item.slot = 0;
      AttentionToken token = {static_cast<int32_t>(slots), 0, 0};
      if (side_by_side) {
        if (!plan.merges_chunks || num_chunks <= kMostUnmergedChunks) {
          token.num_chunks = static_cast<int32_t>(num_chunks);
          plan.most_chunks = std::max(plan.most_chunks, num_chunks);
        }
        for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
          item.chunk = static_cast<int32_t>(chunk);
          item.slot = static_cast<int32_t>(slots++);
          plan.items.push_back(item);
        }
        slab.num_items += num_chunks;
      } else if (is_prompt) {
        prompt_items.push_back(item);
      } else {
        plan.items.push_back(item);
        ++slab.num_items;
      }
      for (int64_t i = 0; i < count; ++i) {
        token.tile_token = static_cast<int32_t>(i);
        plan.tokens.push_back(token);
      }
      slab.num_tokens += count;
    }
  }
  finish_slab();
}

int64_t MostAttentionItems(absl::Span<const PlannedSpan> spans) {
  int64_t most = 0;
  for (const PlannedSpan& span : spans) {
    most += span.num_tokens + NumAttentionChunks(span.num_cached + span.num_tokens);
  }
  // Both lists of a slab are filled up by less than a quarter.
  return most + most / 4 + 2;
}

}  // namespace ultrasketch::cuda
