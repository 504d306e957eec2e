// What a training reads: windows to train on, and tokens to measure the perplexity on.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_TRAINING_TEXTS_H_
#define ULTRASKETCH_ENGINE_FINETUNE_TRAINING_TEXTS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/base/thread_pool.h"
#include "engine/finetune/training_data.h"

namespace ultrasketch {

struct TrainingTextsOptions {
  TokenCache::Options cache;
  std::string eval_file;  // plain or .xz; empty: the end of the text is held out
  int64_t eval_max_tokens = 0;
  int64_t window_tokens = 0;
  int64_t vocab_size = 0;  // of the model
  uint64_t seed = 0;       // of the windows' order
};

// Not thread-safe.
class TrainingTexts {
 public:
  // INVALID_ARGUMENT, naming the file where there is one, for texts that are too short, are not
  // UTF-8, or have tokens that the model lacks; otherwise what TokenCache::Open gives.
  static absl::StatusOr<std::unique_ptr<TrainingTexts>> Open(const TrainingTextsOptions& options,
                                                             ThreadPool& pool);

  // Copies the windows [first, first + count) of the endless order to out [count, window_tokens].
  void CopyWindows(int64_t first, int64_t count, int64_t* out);

  const std::vector<int64_t>& eval_tokens() const { return eval_tokens_; }
  // Tokens at the end of the text that are not trained on.
  int64_t num_held_out() const { return num_held_out_; }
  // TokenCache::key.
  const std::string& key() const { return tokens_->key(); }

 private:
  TrainingTexts(std::unique_ptr<TokenCache> tokens, WindowOrder order, int64_t window_tokens)
      : tokens_(std::move(tokens)), order_(std::move(order)), window_tokens_(window_tokens) {}

  std::unique_ptr<TokenCache> tokens_;
  WindowOrder order_;
  int64_t window_tokens_;
  int64_t num_held_out_ = 0;
  std::vector<int64_t> eval_tokens_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_TRAINING_TEXTS_H_
