#include "engine/backends/cuda/step_input.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "engine/base/status.h"

namespace ultrasketch::cuda {

absl::Status DeviceStep::Begin(const StepInput& step) {
  num_tokens_ = static_cast<int64_t>(step.token_ids.size());
  num_logit_tokens_ = static_cast<int64_t>(step.logit_tokens.size());
  has_one_token_each_ = true;
  used_ = false;
  spans_.clear();
  int64_t num_blocks = 0;
  for (const AttentionSpan& span : step.spans) {
    spans_.push_back({span.first_token, span.num_tokens, span.num_cached, num_blocks});
    num_blocks += static_cast<int64_t>(span.blocks.size());
    has_one_token_each_ = has_one_token_each_ && span.num_tokens <= 1;
  }

  // What grows with the sequences has room to do so in place: while addresses stay, a step's
  // launches are those of the step before.
  const auto with_room = [](int64_t count) {
    constexpr uint64_t kLeast = 64;  // all of it is copied
    return static_cast<int64_t>(std::bit_ceil(std::max(kLeast, static_cast<uint64_t>(count))));
  };
  int64_t num_bytes = 0;
  const auto place = [&](int64_t count, size_t element_bytes) {
    const int64_t offset = num_bytes;
    num_bytes += (count * static_cast<int64_t>(element_bytes) + 255) / 256 * 256;
    return offset;
  };
  tokens_ = place(num_tokens_, sizeof(TokenInput));
  logit_tokens_ = place(num_logit_tokens_, sizeof(int32_t));
  attention_tokens_ = place(num_tokens_, sizeof(AttentionToken));
  items_ = place(with_room(MaxAttentionItems(spans_)), sizeof(AttentionItem));
  block_table_ = place(with_room(num_blocks), sizeof(int32_t));
  US_RETURN_IF_ERROR(Reserve(num_bytes));

  auto* tokens = reinterpret_cast<TokenInput*>(host_.bytes() + tokens_);
  auto* blocks = reinterpret_cast<int32_t*>(host_.bytes() + block_table_);
  for (size_t index = 0; index < spans_.size(); ++index) {
    const PlannedSpan& span = spans_[index];
    for (int64_t i = 0; i < span.num_tokens; ++i) {
      const auto token = static_cast<size_t>(span.first_token + i);
      tokens[token] = {step.token_ids[token], step.positions[token],
                       static_cast<int32_t>(span.num_cached + i),
                       static_cast<int32_t>(span.first_block)};
    }
    std::copy(step.spans[index].blocks.begin(), step.spans[index].blocks.end(),
              blocks + span.first_block);
  }
  std::copy(step.logit_tokens.begin(), step.logit_tokens.end(),
            reinterpret_cast<int32_t*>(host_.bytes() + logit_tokens_));
  if (planned_.has_value()) Plan(*planned_);
  Copy(0, block_table_ + num_blocks * static_cast<int64_t>(sizeof(int32_t)));
  return absl::OkStatus();
}

const AttentionPlan& DeviceStep::PlanFor(const AttentionPlanKey& key) {
  if (!(planned_ == key)) {
    // The copy of the plan before it must be over, and so must what uses it.
    if (planned_.has_value()) {
      device_.Check(cudaStreamSynchronize(device_.stream()), "cudaStreamSynchronize");
    }
    planned_ = key;
    Plan(key);
    Copy(attention_tokens_, block_table_ - attention_tokens_);
  }
  used_ = true;
  return plan_;
}

void DeviceStep::Plan(const AttentionPlanKey& key) {
  PlanAttention(key.geometry, spans_, key.max_slots, key.max_attended_tokens, plan_);
  std::copy(plan_.tokens.begin(), plan_.tokens.end(),
            reinterpret_cast<AttentionToken*>(host_.bytes() + attention_tokens_));
  std::copy(plan_.items.begin(), plan_.items.end(),
            reinterpret_cast<AttentionItem*>(host_.bytes() + items_));
}

absl::Status DeviceStep::Reserve(int64_t num_bytes) {
  if (num_bytes <= memory_.num_bytes()) return absl::OkStatus();
  constexpr int64_t kLeastBytes = int64_t{1} << 20;
  const int64_t capacity = std::max({kLeastBytes, num_bytes, 2 * memory_.num_bytes()});
  US_ASSIGN_OR_RETURN(PinnedMemory host, PinnedMemory::Allocate(device_, capacity));
  US_ASSIGN_OR_RETURN(CudaMemory memory, CudaMemory::Allocate(device_, capacity));
  host_ = std::move(host);
  memory_ = std::move(memory);
  return absl::OkStatus();
}

void DeviceStep::Copy(int64_t offset, int64_t num_bytes) {
  if (num_bytes == 0) return;
  device_.Check(
      cudaMemcpyAsync(memory_.bytes() + offset, host_.bytes() + offset,
                      static_cast<size_t>(num_bytes), cudaMemcpyHostToDevice, device_.stream()),
      "copying the step's input");
}

}  // namespace ultrasketch::cuda
