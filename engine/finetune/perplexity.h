// Perplexity by the trainer's own forward pass.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_PERPLEXITY_H_
#define ULTRASKETCH_ENGINE_FINETUNE_PERPLEXITY_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/finetune/decoder.h"

namespace ultrasketch {

struct PerplexityOptions {
  int64_t window_tokens = 512;  // as EvaluateOptions::context
  int64_t windows_at_once = 16;
  // After each batch: tokens done, of how many. Returns false to end with CANCELLED. May be empty.
  std::function<bool(int64_t done, int64_t total)> progress;
};

// Of `tokens`, at least two: as EvaluateTokens (engine/compress/evaluate.h) cuts and counts them.
absl::StatusOr<double> Perplexity(const Decoder& decoder, const std::vector<int64_t>& tokens,
                                  const PerplexityOptions& options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_PERPLEXITY_H_
