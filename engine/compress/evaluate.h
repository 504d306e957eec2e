// Perplexity of a model on a text.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_EVALUATE_H_
#define ULTRASKETCH_ENGINE_COMPRESS_EVALUATE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/format/checkpoint.h"
#include "engine/format/model_config.h"
#include "engine/format/tokenizer/tokenizer.h"
#include "engine/models/model.h"

namespace ultrasketch {

struct EvaluateProgress {
  int64_t tokens_done = 0;   // predicted so far
  int64_t tokens_total = 0;  // to predict in all
  double nll = 0;            // mean so far
};

struct EvaluateOptions {
  // Windows are context + 1 tokens at stride context; at most the model's context length.
  int64_t context = 512;

  // Only the first tokens of the text count; 0: all.
  int64_t max_tokens = 0;

  // Of a text (EvaluateText): whether it gets what the tokenizer's template adds, once, as the text
  // of a request does.
  bool add_special_tokens = true;

  // Gets, for every predicted token in order, the one that the model held most likely (the lowest
  // id among equals), behind what it has. May be null.
  std::vector<int32_t>* most_likely = nullptr;

  // For the log-softmax; 0: all that the process may use. The model's threads are its backend's.
  int num_threads = 0;

  std::function<void(const EvaluateProgress&)> progress;  // after every step; may be empty

  // When it becomes true, the evaluation ends soon with CANCELLED. May be null.
  const std::atomic<bool>* cancelled = nullptr;
};

struct Evaluation {
  double perplexity = 0;  // exp(nll)
  double nll = 0;         // mean negative log-likelihood of a predicted token, in nats
  double accuracy = 0;    // the share of predicted tokens that were the most likely one
  int64_t tokens = 0;     // predicted
  double seconds = 0;
  double tokens_per_second = 0;
};

// Model options for an evaluation: as many windows in a step as pay off, and a cache for them.
ModelOptions EvaluationModelOptions(const ModelConfig& config, int64_t context);

// What EvaluateTokens would refuse the tokens and options for, before there is a model.
absl::Status CheckEvaluation(const ModelConfig& config, absl::Span<const int32_t> token_ids,
                             const EvaluateOptions& options);

// Every window is a sequence of its own that starts at position 0; every token of a window but its
// first is predicted. The last, shorter window counts too. Several windows share a step, as many as
// model.options() allows.
//
// INVALID_ARGUMENT when there are fewer than two tokens, a context out of range, or ids outside the
// vocabulary; RESOURCE_EXHAUSTED when a window does not fit the model's KV cache.
absl::StatusOr<Evaluation> EvaluateTokens(Model& model, absl::Span<const int32_t> token_ids,
                                          const EvaluateOptions& options);

// The whole text, tokenized at once.
absl::StatusOr<Evaluation> EvaluateText(Model& model, const Tokenizer& tokenizer,
                                        std::string_view text, const EvaluateOptions& options);

// The tokens that EvaluateText evaluates a model on. INVALID_ARGUMENT when one of them is not below
// `vocab_size`, the model's.
absl::StatusOr<std::vector<int32_t>> EncodeForEvaluation(const Tokenizer& tokenizer,
                                                         int32_t vocab_size, std::string_view text,
                                                         bool add_special_tokens);

// Loads the checkpoint to `device` ("auto", "cpu", "cuda:0"), evaluates it and lets it go.
absl::StatusOr<Evaluation> EvaluateCheckpoint(std::shared_ptr<const Checkpoint> checkpoint,
                                              std::string_view device,
                                              absl::Span<const int32_t> token_ids,
                                              const EvaluateOptions& options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_EVALUATE_H_
