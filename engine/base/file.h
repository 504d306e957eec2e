// Files: mapping, reading, and writing that leaves either the old file or the
// whole new one.
#ifndef ULTRASKETCH_ENGINE_BASE_FILE_H_
#define ULTRASKETCH_ENGINE_BASE_FILE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/base/mapping_guard.h"

namespace ultrasketch {

// The status for a failed attempt to open `path` or to look at it: ErrnoStatus's. Where permission
// was denied, the message says by the mode of which file or folder, whose it is, whom it was denied
// to, and what to do about it.
absl::Status CannotOpen(int error_number, const std::string& path);

// A whole file mapped read-only. Immutable and thread-safe. Truncating the file
// while it is mapped makes reads fault (SIGBUS), as with every mapping, or find
// zeros (GuardMappings): replace model files by rename.
class MappedFile {
 public:
  // NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT (not a regular file) or
  // INTERNAL.
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const uint8_t* data() const { return data_; }  // page-aligned; null for an empty file
  int64_t size() const { return size_; }

  // DATA_LOSS, naming the file and what is left of it, once a read has found zeros in place of what
  // the file does not have any more.
  absl::Status CheckIntact() const;

 private:
  MappedFile(std::string path, const uint8_t* data, int64_t size)
      : path_(std::move(path)), data_(data), size_(size), guard_(std::in_place, data, size) {}

  std::string path_;
  const uint8_t* data_;
  int64_t size_;
  std::optional<MappingGuard> guard_;  // goes before the mapping
};

// The contents of a regular file; RESOURCE_EXHAUSTED when larger than
// `max_bytes`.
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes = int64_t{1} << 30);

// Writes to "<path>.tmp.<pid>.<n>" next to `path` and renames it there in
// Commit, after fsync of the file and before fsync of the folder. A file that
// was never committed is removed. Not thread-safe.
class AtomicFileWriter {
 public:
  static absl::StatusOr<std::unique_ptr<AtomicFileWriter>> Create(const std::string& path);
  ~AtomicFileWriter();
  AtomicFileWriter(const AtomicFileWriter&) = delete;
  AtomicFileWriter& operator=(const AtomicFileWriter&) = delete;

  absl::Status Append(std::string_view bytes);
  absl::Status Append(const void* data, int64_t num_bytes);

  // Replaces bytes that have been appended, from `offset` on. What is appended goes to the end as
  // before.
  absl::Status Overwrite(int64_t offset, std::string_view bytes);

  absl::Status Commit();

 private:
  AtomicFileWriter(std::string path, std::string temporary_path, int descriptor)
      : path_(std::move(path)),
        temporary_path_(std::move(temporary_path)),
        descriptor_(descriptor) {}

  std::string path_;
  std::string temporary_path_;
  int descriptor_;
};

// AtomicFileWriter for contents at hand.
absl::Status WriteFileAtomically(const std::string& path, std::string_view contents);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BASE_FILE_H_
