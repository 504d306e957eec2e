// A model whose logits are a function of the tokens before them, and whose cache holds the tokens
// themselves: wrong block tables, wrong positions and lost or overwritten blocks show.
#ifndef ULTRASKETCH_TESTS_SERVING_ENGINE_LOOP_FAKE_MODEL_H_
#define ULTRASKETCH_TESTS_SERVING_ENGINE_LOOP_FAKE_MODEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "engine/models/model.h"

namespace ultrasketch {

// The logits after `tokens`.
using LogitsFunction = std::function<std::vector<float>(absl::Span<const int32_t> tokens)>;

// Pseudo-random logits in [-4, 4).
std::vector<float> HashLogits(absl::Span<const int32_t> tokens, int32_t vocab_size);

struct FakeModelOptions {
  int32_t vocab_size = 300;
  int64_t max_position_embeddings = 256;
  ModelOptions model = {
      .max_step_tokens = 64, .max_step_logits = 16, .kv_cache_tokens = 1024, .block_size = 4};
  LogitsFunction logits;  // null: HashLogits
  // Called at the beginning of each Forward, with the number of those before; an error is
  // Forward's. May block.
  std::function<absl::Status(int64_t)> before_forward;
  // What each step says of where its time went.
  std::optional<StageDurations> stage_durations;
};

class FakeModel final : public Model {
 public:
  explicit FakeModel(FakeModelOptions options);

  const ModelConfig& config() const override { return config_; }
  const ModelOptions& options() const override { return options_.model; }
  const KvCacheLayout& cache_layout() const override { return layout_; }
  MemoryUsage memory_usage() const override;
  bool can_discard_blocks() const override { return true; }
  void DiscardBlocks(absl::Span<const BlockId> blocks) override;

  absl::Status Forward(absl::Span<const SequenceSlice> sequences) override;
  std::optional<StageDurations> stage_durations() const override {
    return options_.stage_durations;
  }
  int64_t num_logits() const override { return static_cast<int64_t>(logits_.size()); }
  absl::Status Sample(absl::Span<const SampleRequest> requests,
                      absl::Span<SampledToken> tokens) override;
  absl::Status CopyLogits(int64_t row, absl::Span<float> logits) override;

 private:
  absl::Status Validate(absl::Span<const SequenceSlice> sequences) const;
  int32_t& Slot(const SequenceSlice& sequence, int64_t position);

  FakeModelOptions options_;
  ModelConfig config_;
  KvCacheLayout layout_;
  std::vector<int32_t> cache_;      // [num_blocks * block_size] tokens; -1: never written
  std::vector<int64_t> positions_;  // of the same slots
  std::vector<std::vector<float>> logits_;
  int64_t num_forwards_ = 0;
};

// What a sequence is expected to generate, token by token, alone and without a cache.
std::vector<int32_t> GenerateAlone(const LogitsFunction& logits, std::vector<int32_t> prompt,
                                   const SamplingParams& params, int num_tokens,
                                   uint64_t completion = 0);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_SERVING_ENGINE_LOOP_FAKE_MODEL_H_
