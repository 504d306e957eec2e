// Text as tokens to train on: tokenized once, kept in a file, and dealt out as shuffled windows.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_TRAINING_DATA_H_
#define ULTRASKETCH_ENGINE_FINETUNE_TRAINING_DATA_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/base/tensor.h"
#include "engine/base/thread_pool.h"
#include "engine/format/safetensors.h"

namespace ultrasketch {

// Tokens of some text files one after the other, mapped from a cache file. Immutable, thread-safe.
class TokenCache {
 public:
  struct Options {
    std::vector<std::string> text_files;  // plain or .xz
    std::string tokenizer_path;
    std::string cache_path;
    // Bytes of text tokenized so far; may be empty.
    std::function<void(int64_t text_bytes)> progress;
    // When it becomes true, Open ends soon with CANCELLED. May be null.
    const std::atomic<bool>* cancelled = nullptr;
  };

  // The cache, which is made where there is none, or one of other texts or another tokenizer (by
  // checksums of their files). The tokens do not depend on the number of threads; long texts are
  // cut at line ends, and tokenized piece by piece. INVALID_ARGUMENT, naming the file, for text
  // that is not UTF-8; DATA_LOSS for a cache that is damaged.
  static absl::StatusOr<std::unique_ptr<TokenCache>> Open(const Options& options, ThreadPool& pool);

  int64_t size() const { return view_.num_elements(); }
  // Tokens [first, first + count).
  void Copy(int64_t first, int64_t count, int64_t* out) const;
  // Names the texts and the tokenizer: equal for equal tokens.
  const std::string& key() const { return key_; }

 private:
  TokenCache() = default;

  std::unique_ptr<SafetensorsFile> file_;
  TensorView view_;
  std::string key_;
};

// Which windows make which step: a function of the seed alone. In each epoch every window comes
// once, in an order of its own, and windows begin at an offset of its own.
class WindowOrder {
 public:
  // Of the first `num_tokens` tokens. INVALID_ARGUMENT when there are not enough for two windows.
  static absl::StatusOr<WindowOrder> Make(int64_t num_tokens, int64_t window_tokens, uint64_t seed);
  // Of windows that are there already, numbered from 0: Starts gives numbers. INVALID_ARGUMENT when
  // there are none.
  static absl::StatusOr<WindowOrder> OfWindows(int64_t num_windows, uint64_t seed);

  int64_t windows_per_epoch() const { return num_windows_; }

  // The first tokens of the windows [first, first + count) of the whole endless order. Not
  // thread-safe: keeps the order of the last epoch asked for.
  std::vector<int64_t> Starts(int64_t first, int64_t count);

 private:
  WindowOrder(int64_t num_windows, int64_t window_tokens, uint64_t seed)
      : num_windows_(num_windows), window_tokens_(window_tokens), seed_(seed) {}
  void ShuffleFor(int64_t epoch);

  int64_t num_windows_;
  int64_t window_tokens_;
  uint64_t seed_;
  int64_t epoch_ = -1;
  int64_t offset_ = 0;
  std::vector<uint32_t> order_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_TRAINING_DATA_H_
