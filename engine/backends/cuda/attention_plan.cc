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
  plan.token_blocks.clear();
  plan.max_splits = 0;
  plan.has_long_items = false;
  const int64_t tile_tokens = geometry.tokens_per_tile();
  int64_t num_split_items = 0;
  for (const PlannedSpan& span : spans) {
    if (span.num_tokens > tile_tokens) continue;
    num_split_items += NumKvSplits(span.num_cached + span.num_tokens);
  }
  plan.merges_splits = num_split_items <= kMaxMergedItems;
  AttentionTokenBlock token_block;
  std::vector<AttentionItem> prompt_items;  // of the token block
  int64_t slots = 0;
  const auto finish_token_block = [&] {
    if (token_block.num_tokens == 0) return;
    token_block.num_items = RoundUpItems(token_block.num_items);
    plan.items.resize(static_cast<size_t>(token_block.first_item + token_block.num_items));
    token_block.num_prompt_items = RoundUpItems(static_cast<int64_t>(prompt_items.size()));
    prompt_items.resize(static_cast<size_t>(token_block.num_prompt_items));
    plan.items.insert(plan.items.end(), prompt_items.begin(), prompt_items.end());
    plan.token_blocks.push_back(token_block);
    token_block = {.first_item = static_cast<int64_t>(plan.items.size()),
                   .first_token = token_block.first_token + token_block.num_tokens};
    prompt_items.clear();
    slots = 0;
  };
  for (const PlannedSpan& span : spans) {
    const bool is_prompt = geometry.is_staged() && span.num_tokens > tile_tokens;
    const int64_t item_tokens =
        is_prompt ? std::min(tile_tokens * kPromptTiles, max_attended_tokens) : tile_tokens;
    for (int64_t first = 0; first < span.num_tokens; first += item_tokens) {
      const int64_t count = std::min(item_tokens, span.num_tokens - first);
      const int64_t num_splits = NumKvSplits(span.num_cached + first + count);
      const bool side_by_side =
          span.num_tokens <= tile_tokens && num_splits > 1 && num_splits <= max_slots;
      if (token_block.num_tokens + count > max_attended_tokens ||
          (side_by_side && slots + num_splits > max_slots)) {
        finish_token_block();
      }
      if (!side_by_side && num_splits > 1) plan.has_long_items = true;
      AttentionItem item;
      item.first_token = static_cast<int32_t>(span.first_token + first);
      item.num_tokens = static_cast<int32_t>(count);
      item.num_keys = static_cast<int32_t>(span.num_cached + first + 1);
      item.first_block = static_cast<int32_t>(span.first_block);
      item.split = -1;
      item.slot = 0;
      AttentionToken token = {static_cast<int32_t>(slots), 0, 0};
      if (side_by_side) {
        if (!plan.merges_splits || num_splits <= kMaxUnmergedSplits) {
          token.num_splits = static_cast<int32_t>(num_splits);
          plan.max_splits = std::max(plan.max_splits, num_splits);
        }
        for (int64_t split = 0; split < num_splits; ++split) {
          item.split = static_cast<int32_t>(split);
          item.slot = static_cast<int32_t>(slots++);
          plan.items.push_back(item);
        }
        token_block.num_items += num_splits;
      } else if (is_prompt) {
        prompt_items.push_back(item);
      } else {
        plan.items.push_back(item);
        ++token_block.num_items;
      }
      for (int64_t i = 0; i < count; ++i) {
        token.tile_token = static_cast<int32_t>(i);
        plan.tokens.push_back(token);
      }
      token_block.num_tokens += count;
    }
  }
  finish_token_block();
}

int64_t MaxAttentionItems(absl::Span<const PlannedSpan> spans) {
  int64_t most = 0;
  for (const PlannedSpan& span : spans) {
    most += span.num_tokens + NumKvSplits(span.num_cached + span.num_tokens);
  }
  // Both lists of a token block are filled up by less than a quarter.
  return most + most / 4 + 2;
}

}  // namespace ultrasketch::cuda
