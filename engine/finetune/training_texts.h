// What a training reads: windows to train on, and tokens to measure the perplexity on.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_TRAINING_TEXTS_H_
#define ULTRASKETCH_ENGINE_FINETUNE_TRAINING_TEXTS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/base/thread_pool.h"
#include "engine/compress/token_windows.h"
#include "engine/finetune/training_data.h"

namespace ultrasketch {

struct TrainingTextsOptions {
  TokenCache::Options cache;  // without text files there are windows alone
  // Files of windows of `window_tokens` tokens (token_windows.h), which are trained on as they are.
  std::vector<std::string> window_files;
  // Where there are texts and windows: the part of what is trained on that is windows.
  double windows_share = 0.5;
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
  // UTF-8, or have tokens that the model lacks, and for windows of another length; otherwise what
  // TokenCache::Open and TokenWindows::Open give.
  static absl::StatusOr<std::unique_ptr<TrainingTexts>> Open(const TrainingTextsOptions& options,
                                                             ThreadPool& pool);

  // Copies the windows [first, first + count) of the endless order to out [count, window_tokens].
  // Texts and windows take turns as evenly as their shares allow.
  void CopyWindows(int64_t first, int64_t count, int64_t* out);

  const std::vector<int64_t>& eval_tokens() const { return eval_tokens_; }
  // Tokens at the end of the text, or of the windows where there is no text, that are not trained
  // on.
  int64_t num_held_out() const { return num_held_out_; }
  // Equal for equal texts and windows.
  const std::string& key() const { return key_; }

 private:
  TrainingTexts() = default;

  absl::Status OpenWindows(const TrainingTextsOptions& options, ThreadPool& pool);
  void CopyWindow(int64_t window, int64_t* out) const;
  void HoldOut(const TrainingTextsOptions& options);

  int64_t window_tokens_ = 0;
  std::unique_ptr<TokenCache> tokens_;                  // null: no text
  std::optional<WindowOrder> order_;                    // of the text's windows
  std::vector<std::unique_ptr<TokenWindows>> windows_;  // one after the other
  int64_t num_windows_ = 0;                             // of them, less what is held out
  std::optional<WindowOrder> windows_order_;
  double windows_share_ = 0;
  std::string key_;
  int64_t num_held_out_ = 0;
  std::vector<int64_t> eval_tokens_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_TRAINING_TEXTS_H_
