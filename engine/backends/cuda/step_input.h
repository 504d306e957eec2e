// The input of a step on the device: one pinned buffer, one copy.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_STEP_INPUT_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_STEP_INPUT_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"

#include "engine/backends/backend.h"
#include "engine/backends/cuda/attention_plan.h"
#include "engine/backends/cuda/cuda_device.h"
#include "engine/backends/cuda/kernels.h"

namespace ultrasketch::cuda {

// What a plan of attention depends on besides the step.
struct AttentionPlanKey {
  AttentionGeometry geometry;
  int64_t max_slots = 1;
  int64_t max_attended_tokens = kAttentionRows;
  friend bool operator==(const AttentionPlanKey&, const AttentionPlanKey&) = default;
};

// One thread at a time. The buffers grow to the largest step seen.
class DeviceStep {
 public:
  explicit DeviceStep(CudaDevice& device) : device_(device) {}

  // Begins the copy of `step`, whose spans are copied from. The step before it must be finished.
  absl::Status Begin(const StepInput& step);

  // Bytes of device memory.
  int64_t num_bytes() const { return memory_.num_bytes(); }

  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_logit_tokens() const { return num_logit_tokens_; }
  // No more than one of each sequence.
  bool has_one_token_each() const { return has_one_token_each_; }

  // Device memory.
  const TokenInput* tokens() const { return At<TokenInput>(tokens_); }
  const int32_t* logit_tokens() const { return At<int32_t>(logit_tokens_); }
  const int32_t* block_table() const { return At<int32_t>(block_table_); }
  const AttentionItem* attention_items() const { return At<AttentionItem>(items_); }
  const AttentionToken* attention_tokens() const { return At<AttentionToken>(attention_tokens_); }

  // Whether the step's attention is in use, cut up for another geometry: what uses it must be
  // launched before PlanFor replaces it.
  bool IsUsedForOther(const AttentionPlanKey& key) const { return used_ && !(planned_ == key); }
  // The step's attention, cut into work. Planned when the step begins if it is as in the step
  // before, else when the first layer asks; a second geometry within a step waits for what uses the
  // first.
  const AttentionPlan& PlanFor(const AttentionPlanKey& key);

 private:
  template <typename T>
  const T* At(int64_t offset) const {
    return reinterpret_cast<const T*>(memory_.bytes() + offset);
  }
  absl::Status Reserve(int64_t num_bytes);
  // Plans into host_.
  void Plan(const AttentionPlanKey& key);
  void Copy(int64_t offset, int64_t num_bytes);

  CudaDevice& device_;
  PinnedMemory host_;
  CudaMemory memory_;
  int64_t num_tokens_ = 0;
  int64_t num_logit_tokens_ = 0;
  bool has_one_token_each_ = false;
  // Offsets in both buffers, in this order.
  int64_t tokens_ = 0;
  int64_t logit_tokens_ = 0;
  int64_t attention_tokens_ = 0;
  int64_t items_ = 0;
  int64_t block_table_ = 0;

  std::vector<PlannedSpan> spans_;
  std::optional<AttentionPlanKey> planned_;
  bool used_ = false;  // the plan, by this step
  AttentionPlan plan_;
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_STEP_INPUT_H_
