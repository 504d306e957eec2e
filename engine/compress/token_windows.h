// Windows of tokens in a file: text that a model has written, to train on as it was written.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_TOKEN_WINDOWS_H_
#define ULTRASKETCH_ENGINE_COMPRESS_TOKEN_WINDOWS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/base/tensor.h"
#include "engine/base/thread_pool.h"
#include "engine/format/safetensors.h"

namespace ultrasketch {

// How files of windows are told from files of text.
bool IsTokenWindowsPath(std::string_view path);  // ends in ".safetensors"

// Mapped from a file. Immutable, thread-safe.
class TokenWindows {
 public:
  // The file at `path`, read whole once to check it. INVALID_ARGUMENT for a file that
  // WriteTokenWindows did not write or wrote for another tokenizer than the one at
  // `tokenizer_path`; DATA_LOSS for a damaged one.
  static absl::StatusOr<std::unique_ptr<TokenWindows>> Open(const std::string& path,
                                                            const std::string& tokenizer_path,
                                                            ThreadPool& pool);

  int64_t num_windows() const { return view_.shape[0]; }
  int64_t window_tokens() const { return view_.shape[1]; }
  void Copy(int64_t window, int64_t* out) const;  // [window_tokens]
  // Equal for equal windows.
  const std::string& key() const { return key_; }

 private:
  TokenWindows() = default;

  std::unique_ptr<SafetensorsFile> file_;
  TensorView view_;
  std::string key_;
};

// `tokens` [num_windows, window_tokens], of the tokenizer at `tokenizer_path`, to a file.
absl::Status WriteTokenWindows(const std::string& path, const std::string& tokenizer_path,
                               absl::Span<const int32_t> tokens, int64_t window_tokens);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_TOKEN_WINDOWS_H_
