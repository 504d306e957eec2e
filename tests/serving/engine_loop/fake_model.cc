#include "tests/serving/engine_loop/fake_model.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/check.h"
#include "engine/base/random.h"
#include "engine/base/status.h"

namespace ultrasketch {

std::vector<float> HashLogits(absl::Span<const int32_t> tokens, int32_t vocab_size) {
  uint64_t hash = 1;
  for (const int32_t token : tokens) {
    hash = RandomWord(hash, static_cast<uint64_t>(token), 17);
  }
  std::vector<float> logits(static_cast<size_t>(vocab_size));
  for (size_t i = 0; i < logits.size(); ++i) {
    logits[i] = static_cast<float>(8 * UniformDouble(hash, 3, i) - 4);
  }
  return logits;
}

FakeModel::FakeModel(FakeModelOptions options) : options_(std::move(options)) {
  config_.model_type = "llama";
  config_.vocab_size = options_.vocab_size;
  config_.max_position_embeddings = options_.max_position_embeddings;
  if (options_.logits == nullptr) {
    options_.logits = [vocab_size = options_.vocab_size](absl::Span<const int32_t> tokens) {
      return HashLogits(tokens, vocab_size);
    };
  }
  layout_.num_layers = layout_.num_kv_heads = layout_.head_dim = 1;
  layout_.block_size = options_.model.block_size;
  layout_.num_blocks = layout_.BlocksForTokens(options_.model.kv_cache_tokens);
  cache_.assign(static_cast<size_t>(layout_.num_blocks * layout_.block_size), -1);
  positions_.assign(cache_.size(), -1);
}

MemoryUsage FakeModel::memory_usage() const {
  return {.weights = 1000, .embedding = 200, .kv_cache = layout_.total_bytes(), .workspace = 30};
}

absl::Status FakeModel::Validate(absl::Span<const SequenceSlice> sequences) const {
  int64_t num_tokens = 0;
  int64_t num_logits = 0;
  if (sequences.empty()) return absl::InvalidArgumentError("an empty step");
  for (const SequenceSlice& sequence : sequences) {
    const int64_t num_new = static_cast<int64_t>(sequence.token_ids.size());
    const int64_t end = sequence.num_cached + num_new;
    if (num_new < 1 || end > config_.max_position_embeddings) {
      return absl::InvalidArgumentError(absl::StrCat("tokens up to ", end));
    }
    if (static_cast<int64_t>(sequence.blocks.size()) * layout_.block_size < end) {
      return absl::InvalidArgumentError("too few blocks");
    }
    if (sequence.num_logits < 0 || sequence.num_logits > num_new) {
      return absl::InvalidArgumentError("rows of logits");
    }
    for (const int32_t id : sequence.token_ids) {
      if (id < 0 || id >= config_.vocab_size) return absl::InvalidArgumentError("token id");
    }
    num_tokens += num_new;
    num_logits += sequence.num_logits;
  }
  if (num_tokens > options_.model.max_step_tokens || num_logits > options_.model.max_step_logits) {
    return absl::InvalidArgumentError(
        absl::StrCat("a step of ", num_tokens, " tokens and ", num_logits, " rows"));
  }
  return absl::OkStatus();
}

int32_t& FakeModel::Slot(const SequenceSlice& sequence, int64_t position) {
  const int64_t block = sequence.blocks[static_cast<size_t>(position / layout_.block_size)];
  US_CHECK(block >= 0 && block < layout_.num_blocks);
  return cache_[static_cast<size_t>(block * layout_.block_size + position % layout_.block_size)];
}

void FakeModel::DiscardBlocks(absl::Span<const BlockId> blocks) {
  for (const BlockId block : blocks) {
    std::fill_n(cache_.begin() + block * layout_.block_size, layout_.block_size, -1);
    std::fill_n(positions_.begin() + block * layout_.block_size, layout_.block_size, -1);
  }
}

absl::Status FakeModel::Forward(absl::Span<const SequenceSlice> sequences) {
  logits_.clear();
  const int64_t index = num_forwards_++;
  if (options_.before_forward != nullptr) {
    US_RETURN_IF_ERROR(options_.before_forward(index));
  }
  US_RETURN_IF_ERROR(Validate(sequences));
  // As a device would: all keys and values first, attention over the cache after.
  for (const SequenceSlice& sequence : sequences) {
    for (size_t i = 0; i < sequence.token_ids.size(); ++i) {
      const int64_t position = sequence.num_cached + static_cast<int64_t>(i);
      int32_t& slot = Slot(sequence, position);
      slot = sequence.token_ids[i];
      positions_[static_cast<size_t>(&slot - cache_.data())] = position;
    }
  }
  for (const SequenceSlice& sequence : sequences) {
    const int64_t end = sequence.num_cached + static_cast<int64_t>(sequence.token_ids.size());
    std::vector<int32_t> tokens;
    for (int64_t position = 0; position < end; ++position) {
      const int32_t& slot = Slot(sequence, position);
      if (positions_[static_cast<size_t>(&slot - cache_.data())] != position) {
        return absl::InternalError(absl::StrCat("position ", position, " is not in its block"));
      }
      tokens.push_back(slot);
      if (position >= end - sequence.num_logits) logits_.push_back(options_.logits(tokens));
    }
  }
  return absl::OkStatus();
}

absl::Status FakeModel::Sample(absl::Span<const SampleRequest> requests,
                               absl::Span<SampledToken> tokens) {
  US_CHECK(requests.size() == tokens.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    US_CHECK(requests[i].logits_row >= 0 && requests[i].logits_row < num_logits());
    US_ASSIGN_OR_RETURN(
        tokens[i], SampleToken(logits_[static_cast<size_t>(requests[i].logits_row)], requests[i]));
  }
  return absl::OkStatus();
}

absl::Status FakeModel::CopyLogits(int64_t row, absl::Span<float> logits) {
  US_CHECK(row >= 0 && row < num_logits());
  const std::vector<float>& source = logits_[static_cast<size_t>(row)];
  US_CHECK(source.size() == logits.size());
  std::copy(source.begin(), source.end(), logits.begin());
  return absl::OkStatus();
}

std::vector<int32_t> GenerateAlone(const LogitsFunction& logits, std::vector<int32_t> prompt,
                                   const SamplingParams& params, int num_tokens,
                                   uint64_t completion) {
  TokenCounts counts;
  for (const int32_t id : prompt) ++counts.prompt[id];
  std::vector<int32_t> generated;
  while (static_cast<int>(generated.size()) < num_tokens) {
    SampleRequest request;
    request.params = &params;
    request.counts = &counts;
    request.stream = completion;
    request.index = generated.size();
    const absl::StatusOr<SampledToken> token = SampleToken(logits(prompt), request);
    US_CHECK(token.ok());
    generated.push_back(token->id);
    prompt.push_back(token->id);
    ++counts.output[token->id];
  }
  return generated;
}

}  // namespace ultrasketch
