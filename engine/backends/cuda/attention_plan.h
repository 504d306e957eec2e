// How the attention of a step is cut into blocks of work. Plain data, no device.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_ATTENTION_PLAN_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_ATTENTION_PLAN_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

#include "engine/backends/cuda/kernels.h"

namespace ultrasketch::cuda {

// A sequence's tokens of a step.
struct PlannedSpan {
  int64_t first_token = 0;
  int64_t num_tokens = 0;
  int64_t num_cached = 0;
  int64_t first_block = 0;  // in the step's block table
};

// Consecutive tokens whose intermediate results fit the workspace together.
struct AttentionTokenBlock {
  int64_t first_item = 0;
  int64_t num_items = 0;
  int64_t num_prompt_items = 0;  // after the others
  int64_t first_token = 0;
  int64_t num_tokens = 0;
};

struct AttentionPlan {
  std::vector<AttentionItem> items;
  std::vector<AttentionToken> tokens;             // [num_tokens]
  std::vector<AttentionTokenBlock> token_blocks;  // cover items and tokens in order
  int64_t max_splits = 0;                         // of a token, that are not merged by attention
  bool merges_splits = false;                     // AttentionArguments::merges_splits
  bool has_long_items = false;                    // of several KV splits
};

// At least 1 slot and kAttentionRows tokens of workspace. A sequence with no more new tokens than
// one tile holds has its KV splits computed side by side, as far as the slots go; the others go
// through their KV splits one after the other, as prompts where there is a kernel for it. Results
// do not depend on which.
//
// The items of a token block are filled up with empty ones, so that few steps differ in their
// number: those that do not differ can be launched as the same graph.
void PlanAttention(const AttentionGeometry& geometry, absl::Span<const PlannedSpan> spans,
                   int64_t max_slots, int64_t max_attended_tokens, AttentionPlan& plan);

// No plan for these spans has more items, whatever the geometry and the workspace.
int64_t MaxAttentionItems(absl::Span<const PlannedSpan> spans);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_ATTENTION_PLAN_H_
