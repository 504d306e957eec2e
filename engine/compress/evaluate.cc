#include "engine/compress/evaluate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "engine/backends/sampling/sampling.h"
#include "engine/base/status.h"
#include "engine/base/thread_pool.h"

namespace ultrasketch {
namespace {

// Enough to keep a backend busy.
constexpr int64_t kStepTokens = 2048;
// Of a step's logits, as far as kFewestLogits rows allow.
constexpr int64_t kLogitsBytes = int64_t{256} << 20;
constexpr int64_t kFewestLogits = 64;

// token_ids[first, first + num_inputs] of the text: the inputs and, one further on, the labels.
struct Window {
  int64_t first = 0;
  int64_t num_inputs = 0;
};

std::vector<Window> MakeWindows(int64_t num_tokens, int64_t context) {
  std::vector<Window> windows;
  for (int64_t first = 0; first + 1 < num_tokens; first += context) {
    windows.push_back({first, std::min(context, num_tokens - 1 - first)});
  }
  return windows;
}

class Evaluator {
 public:
  Evaluator(Model& model, absl::Span<const int32_t> token_ids, const EvaluateOptions& options)
      : model_(model),
        token_ids_(token_ids),
        options_(options),
        pool_(options.num_threads),
        chunk_tokens_(std::min(model.options().max_step_tokens, model.options().max_step_logits)) {}

  absl::StatusOr<Evaluation> Run() {
    const std::vector<Window> windows =
        MakeWindows(static_cast<int64_t>(token_ids_.size()), options_.context);
    tokens_total_ = static_cast<int64_t>(token_ids_.size()) - 1;
    const auto start = std::chrono::steady_clock::now();
    size_t next = 0;
    while (next < windows.size()) {
      const size_t count = WindowsInStep(windows, next);
      US_RETURN_IF_ERROR(RunWindows(absl::MakeSpan(windows).subspan(next, count)));
      next += count;
    }
    Evaluation evaluation;
    evaluation.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    evaluation.tokens = tokens_done_;
    evaluation.nll = nll_sum_ / static_cast<double>(tokens_done_);
    evaluation.perplexity = std::exp(evaluation.nll);
    evaluation.accuracy = static_cast<double>(num_most_likely_) / static_cast<double>(tokens_done_);
    evaluation.tokens_per_second = static_cast<double>(tokens_done_) / evaluation.seconds;
    return evaluation;
  }

 private:
  int64_t BlocksOf(const Window& window) const {
    return model_.cache_layout().BlocksForTokens(window.num_inputs);
  }

  // At least 1; more where they fit a step and the cache whole.
  size_t WindowsInStep(const std::vector<Window>& windows, size_t first) const {
    size_t count = 0;
    int64_t num_tokens = 0;
    int64_t num_blocks = 0;
    for (size_t index = first; index < windows.size(); ++index, ++count) {
      num_tokens += windows[index].num_inputs;
      num_blocks += BlocksOf(windows[index]);
      if (num_tokens > chunk_tokens_ || num_blocks > model_.cache_layout().num_blocks) break;
    }
    return std::max<size_t>(count, 1);
  }

  // Several windows in one step, or one in as many steps as it takes.
  absl::Status RunWindows(absl::Span<const Window> windows) {
    std::vector<std::vector<BlockId>> blocks;
    BlockId next_block = 0;
    for (const Window& window : windows) {
      if (next_block + BlocksOf(window) > model_.cache_layout().num_blocks) {
        return absl::ResourceExhaustedError(
            absl::StrCat("a window of ", window.num_inputs, " tokens takes ", BlocksOf(window),
                         " blocks of KV cache, the model has ", model_.cache_layout().num_blocks));
      }
      blocks.emplace_back(static_cast<size_t>(BlocksOf(window)));
      std::iota(blocks.back().begin(), blocks.back().end(), next_block);
      next_block += static_cast<BlockId>(blocks.back().size());
    }
    if (windows.size() > 1) return RunStep(windows, blocks, 0);
    const Window& window = windows.front();
    for (int64_t done = 0; done < window.num_inputs; done += chunk_tokens_) {
      const Window chunk = {window.first + done, std::min(chunk_tokens_, window.num_inputs - done)};
      US_RETURN_IF_ERROR(RunStep({chunk}, blocks, done));
    }
    return absl::OkStatus();
  }

  // One sequence a window, each with `num_cached` tokens in its blocks already.
  absl::Status RunStep(absl::Span<const Window> windows,
                       absl::Span<const std::vector<BlockId>> blocks, int64_t num_cached) {
    if (options_.cancelled != nullptr && options_.cancelled->load(std::memory_order_relaxed)) {
      return absl::CancelledError("the evaluation was cancelled");
    }
    std::vector<SequenceSlice> sequences;
    std::vector<int32_t> labels;
    for (size_t index = 0; index < windows.size(); ++index) {
      const auto first = static_cast<size_t>(windows[index].first);
      const auto count = static_cast<size_t>(windows[index].num_inputs);
      sequences.push_back(
          {token_ids_.subspan(first, count), num_cached, blocks[index], windows[index].num_inputs});
      const absl::Span<const int32_t> next_tokens = token_ids_.subspan(first + 1, count);
      labels.insert(labels.end(), next_tokens.begin(), next_tokens.end());
    }
    US_RETURN_IF_ERROR(model_.Forward(sequences));
    US_RETURN_IF_ERROR(AddLogits(labels));
    if (options_.progress) {
      options_.progress(
          {tokens_done_, tokens_total_, nll_sum_ / static_cast<double>(tokens_done_)});
    }
    return absl::OkStatus();
  }

  absl::Status AddLogits(absl::Span<const int32_t> labels) {
    const auto vocab_size = static_cast<size_t>(model_.config().vocab_size);
    const auto rows_at_once = static_cast<size_t>(pool_.num_threads()) * 8;
    logits_.resize(rows_at_once * vocab_size);
    logprobs_.resize(rows_at_once);
    most_likely_.resize(rows_at_once);
    for (size_t first = 0; first < labels.size(); first += rows_at_once) {
      const size_t num_rows = std::min(rows_at_once, labels.size() - first);
      for (size_t row = 0; row < num_rows; ++row) {
        US_RETURN_IF_ERROR(
            model_.CopyLogits(static_cast<int64_t>(first + row),
                              absl::MakeSpan(logits_).subspan(row * vocab_size, vocab_size)));
      }
      pool_.ParallelFor(static_cast<int64_t>(num_rows), 1, [&](int64_t begin, int64_t end, int) {
        for (auto row = static_cast<size_t>(begin); row < static_cast<size_t>(end); ++row) {
          const auto logits = absl::MakeConstSpan(logits_).subspan(row * vocab_size, vocab_size);
          logprobs_[row] = LogProbability(logits, labels[first + row]);
          most_likely_[row] =
              static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
        }
      });
      for (size_t row = 0; row < num_rows; ++row) {
        if (!std::isfinite(logprobs_[row])) {
          return absl::InternalError(absl::StrCat("the model's logits for token ", tokens_done_ + 1,
                                                  " of the text are not finite"));
        }
        nll_sum_ -= logprobs_[row];
        if (most_likely_[row] == labels[first + row]) ++num_most_likely_;
        if (options_.most_likely != nullptr) options_.most_likely->push_back(most_likely_[row]);
        ++tokens_done_;
      }
    }
    return absl::OkStatus();
  }

  Model& model_;
  const absl::Span<const int32_t> token_ids_;
  const EvaluateOptions& options_;
  ThreadPool pool_;
  const int64_t chunk_tokens_;
  int64_t tokens_done_ = 0;
  int64_t tokens_total_ = 0;
  int64_t num_most_likely_ = 0;
  double nll_sum_ = 0;
  std::vector<float> logits_;
  std::vector<double> logprobs_;
  std::vector<int32_t> most_likely_;
};

// The tokens that the options leave.
absl::Span<const int32_t> Counted(absl::Span<const int32_t> token_ids,
                                  const EvaluateOptions& options) {
  return options.max_tokens > 0 ? token_ids.subspan(0, static_cast<size_t>(options.max_tokens))
                                : token_ids;
}

}  // namespace

ModelOptions EvaluationModelOptions(const ModelConfig& config, int64_t context) {
  ModelOptions options;
  context = std::clamp<int64_t>(context, 1, config.max_position_embeddings);
  const int64_t num_windows = std::max<int64_t>(1, kStepTokens / context);
  options.max_step_tokens = std::min(num_windows * context, std::max(context, kStepTokens));
  const int64_t row_bytes = int64_t{config.vocab_size} * static_cast<int64_t>(sizeof(float));
  options.max_step_logits =
      std::clamp(kLogitsBytes / row_bytes, std::min(kFewestLogits, options.max_step_tokens),
                 options.max_step_tokens);
  const int64_t window_blocks = (context + options.block_size - 1) / options.block_size;
  options.kv_cache_tokens = num_windows * window_blocks * options.block_size;
  return options;
}

absl::Status CheckEvaluation(const ModelConfig& config, absl::Span<const int32_t> token_ids,
                             const EvaluateOptions& options) {
  token_ids = Counted(token_ids, options);
  if (token_ids.size() < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected a text of at least 2 tokens, found ", token_ids.size()));
  }
  if (options.context < 1 || options.context > config.max_position_embeddings) {
    return absl::InvalidArgumentError(
        absl::StrCat("context: expected 1 to ", config.max_position_embeddings,
                     " tokens for this model, found ", options.context));
  }
  for (size_t index = 0; index < token_ids.size(); ++index) {
    if (token_ids[index] < 0 || token_ids[index] >= config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("token ", index, ": expected an id below ",
                                                     config.vocab_size, ", found ",
                                                     token_ids[index]));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Evaluation> EvaluateTokens(Model& model, absl::Span<const int32_t> token_ids,
                                          const EvaluateOptions& options) {
  US_RETURN_IF_ERROR(CheckEvaluation(model.config(), token_ids, options));
  return Evaluator(model, Counted(token_ids, options), options).Run();
}

absl::StatusOr<Evaluation> EvaluateText(Model& model, const Tokenizer& tokenizer,
                                        std::string_view text, const EvaluateOptions& options) {
  US_ASSIGN_OR_RETURN(
      const std::vector<int32_t> token_ids,
      EncodeForEvaluation(tokenizer, model.config().vocab_size, text, options.add_special_tokens));
  return EvaluateTokens(model, token_ids, options);
}

absl::StatusOr<std::vector<int32_t>> EncodeForEvaluation(const Tokenizer& tokenizer,
                                                         int32_t vocab_size, std::string_view text,
                                                         bool add_special_tokens) {
  US_ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                      tokenizer.Encode(text, {.add_special_tokens = add_special_tokens}));
  US_RETURN_IF_ERROR(CheckIdsOfText(tokenizer, ids, vocab_size));
  return ids;
}

absl::StatusOr<Evaluation> EvaluateCheckpoint(std::shared_ptr<const Checkpoint> checkpoint,
                                              std::string_view device,
                                              absl::Span<const int32_t> token_ids,
                                              const EvaluateOptions& options) {
  US_RETURN_IF_ERROR(CheckEvaluation(checkpoint->config(), token_ids, options));
  US_ASSIGN_OR_RETURN(std::shared_ptr<Backend> backend,
                      CreateBackend(device, {.num_threads = options.num_threads}));
  const ModelOptions model_options = EvaluationModelOptions(checkpoint->config(), options.context);
  US_ASSIGN_OR_RETURN(const std::unique_ptr<Model> model,
                      LoadModel(std::move(checkpoint), std::move(backend), model_options));
  return EvaluateTokens(*model, token_ids, options);
}

}  // namespace ultrasketch
