// Text files, plain or compressed, as a stream of bytes.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_TEXT_FILE_H_
#define ULTRASKETCH_ENGINE_COMPRESS_TEXT_FILE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace ultrasketch {

// Read once from start to end. Not thread-safe.
class TextFile {
 public:
  // Decompresses a file whose name ends in ".xz". NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT
  // for what is no regular file.
  static absl::StatusOr<std::unique_ptr<TextFile>> Open(const std::string& path);
  virtual ~TextFile() = default;

  // Up to `max_bytes` further bytes to `out`: fewer only at the end. DATA_LOSS naming the file for
  // a damaged or truncated archive.
  virtual absl::StatusOr<int64_t> Read(char* out, int64_t max_bytes) = 0;

  // Passes over up to `num_bytes` bytes, and returns how many there were.
  absl::StatusOr<int64_t> Skip(int64_t num_bytes);
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_TEXT_FILE_H_
