#include "engine/models/step_layout.h"

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"

namespace ultrasketch {
namespace {

absl::Status CheckSequence(const SequenceSlice& sequence, const ModelConfig& config,
                           const KvCacheLayout& layout) {
  const auto num_tokens = static_cast<int64_t>(sequence.token_ids.size());
  if (num_tokens < 1) return absl::InvalidArgumentError("expected at least one token, found none");
  if (sequence.num_cached < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_cached: expected at least 0, found ", sequence.num_cached));
  }
  if (sequence.num_cached > config.max_position_embeddings - num_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "expected at most ", config.max_position_embeddings, " tokens of context, found ",
        sequence.num_cached, " cached and ", num_tokens, " new"));
  }
  if (sequence.num_logits < 0 || sequence.num_logits > num_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_logits: expected 0 to ", num_tokens, ", found ", sequence.num_logits));
  }
  for (const int32_t id : sequence.token_ids) {
    if (id < 0 || id >= config.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id: expected 0 to ", config.vocab_size - 1, ", found ", id));
    }
  }
  const int64_t needed = layout.BlocksForTokens(sequence.num_cached + num_tokens);
  if (static_cast<int64_t>(sequence.blocks.size()) < needed) {
    return absl::InvalidArgumentError(absl::StrCat(
        "expected at least ", needed, " cache blocks, found ", sequence.blocks.size()));
  }
  for (const BlockId block : sequence.blocks) {
    if (block < 0 || block >= layout.num_blocks) {
      return absl::InvalidArgumentError(
          absl::StrCat("cache block: expected 0 to ", layout.num_blocks - 1, ", found ", block));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status StepLayout::Build(absl::Span<const SequenceSlice> sequences, const ModelConfig& config,
                               const ModelOptions& options, const KvCacheLayout& layout) {
  token_ids_.clear();
  positions_.clear();
  spans_.clear();
  logit_tokens_.clear();
  if (sequences.empty()) {
    return absl::InvalidArgumentError("a step needs at least one sequence, found none");
  }
  for (size_t i = 0; i < sequences.size(); ++i) {
    const SequenceSlice& sequence = sequences[i];
    if (const absl::Status status = CheckSequence(sequence, config, layout); !status.ok()) {
      return Annotate(status, absl::StrCat("sequence ", i, " of the step"));
    }
    const auto first_token = static_cast<int64_t>(token_ids_.size());
    const auto num_tokens = static_cast<int64_t>(sequence.token_ids.size());
    spans_.push_back({first_token, num_tokens, sequence.num_cached, sequence.blocks});
    for (int64_t token = 0; token < num_tokens; ++token) {
      token_ids_.push_back(sequence.token_ids[static_cast<size_t>(token)]);
      positions_.push_back(static_cast<int32_t>(sequence.num_cached + token));
      if (token >= num_tokens - sequence.num_logits) {
        logit_tokens_.push_back(static_cast<int32_t>(first_token + token));
      }
    }
  }
  if (static_cast<int64_t>(token_ids_.size()) > options.max_step_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("a step has at most ", options.max_step_tokens,
                                                   " tokens, found ", token_ids_.size()));
  }
  if (static_cast<int64_t>(logit_tokens_.size()) > options.max_step_logits) {
    return absl::InvalidArgumentError(absl::StrCat("a step has at most ", options.max_step_logits,
                                                   " rows of logits, found ",
                                                   logit_tokens_.size()));
  }
  input_ = {token_ids_, positions_, spans_, logit_tokens_};
  return absl::OkStatus();
}

}  // namespace ultrasketch
