#include "engine/base/file.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include <sys/mman.h>
#include <sys/stat.h>

#include "engine/base/status.h"

namespace ultrasketch {
namespace {

// An open descriptor of the regular file at `path` and its size.
absl::StatusOr<int> OpenRegularFile(const std::string& path, int64_t* size) {
  // Without O_NONBLOCK, opening a pipe waits for its other end. Regular files ignore it.
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return ErrnoStatus(errno, absl::StrCat("cannot open ", path));
  struct stat info;
  if (fstat(descriptor, &info) != 0) {
    const int error = errno;
    close(descriptor);
    return ErrnoStatus(error, absl::StrCat("cannot stat ", path));
  }
  if (!S_ISREG(info.st_mode)) {
    close(descriptor);
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected a regular file, found ",
                     S_ISDIR(info.st_mode) ? "a folder" : "something else"));
  }
  *size = info.st_size;
  return descriptor;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::Open(const std::string& path) {
  int64_t size = 0;
  US_ASSIGN_OR_RETURN(const int descriptor, OpenRegularFile(path, &size));
  const absl::Cleanup closer = [descriptor] { close(descriptor); };
  const uint8_t* data = nullptr;
  if (size > 0) {
    void* address = mmap(nullptr, static_cast<size_t>(size), PROT_READ, MAP_SHARED, descriptor, 0);
    if (address == MAP_FAILED) return ErrnoStatus(errno, absl::StrCat("cannot map ", path));
    data = static_cast<const uint8_t*>(address);
  }
  return std::unique_ptr<MappedFile>(new MappedFile(path, data, size));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(size_));
}

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes) {
  int64_t size = 0;
  US_ASSIGN_OR_RETURN(const int descriptor, OpenRegularFile(path, &size));
  const absl::Cleanup closer = [descriptor] { close(descriptor); };
  if (size > max_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path, " has ", size, " bytes, expected at most ", max_bytes));
  }
  std::string contents(static_cast<size_t>(size), '\0');
  size_t done = 0;
  while (done < contents.size()) {
    const ssize_t n = read(descriptor, contents.data() + done, contents.size() - done);
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, absl::StrCat("cannot read ", path));
    }
    if (n == 0) break;  // truncated while being read
    done += static_cast<size_t>(n);
  }
  contents.resize(done);
  return contents;
}

absl::StatusOr<std::unique_ptr<AtomicFileWriter>> AtomicFileWriter::Create(
    const std::string& path) {
  static std::atomic<int> counter{0};
  std::string temporary = absl::StrCat(path, ".tmp.", getpid(), ".", counter.fetch_add(1));
  const int descriptor = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor < 0) return ErrnoStatus(errno, absl::StrCat("cannot create ", temporary));
  return std::unique_ptr<AtomicFileWriter>(
      new AtomicFileWriter(path, std::move(temporary), descriptor));
}

AtomicFileWriter::~AtomicFileWriter() {
  if (descriptor_ < 0) return;
  close(descriptor_);
  unlink(temporary_path_.c_str());
}

absl::Status AtomicFileWriter::Append(std::string_view bytes) {
  return Append(bytes.data(), static_cast<int64_t>(bytes.size()));
}

absl::Status AtomicFileWriter::Append(const void* data, int64_t num_bytes) {
  const char* position = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const ssize_t n = write(descriptor_, position, static_cast<size_t>(num_bytes));
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, absl::StrCat("cannot write ", temporary_path_));
    }
    position += n;
    num_bytes -= n;
  }
  return absl::OkStatus();
}

absl::Status AtomicFileWriter::Overwrite(int64_t offset, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = pwrite(descriptor_, bytes.data(), bytes.size(), offset);
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, absl::StrCat("cannot write ", temporary_path_));
    }
    bytes.remove_prefix(static_cast<size_t>(n));
    offset += n;
  }
  return absl::OkStatus();
}

absl::Status AtomicFileWriter::Commit() {
  if (fsync(descriptor_) != 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot fsync ", temporary_path_));
  }
  if (rename(temporary_path_.c_str(), path_.c_str()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot rename ", temporary_path_, " to ", path_));
  }
  close(descriptor_);
  descriptor_ = -1;
  std::string folder = std::filesystem::path(path_).parent_path().string();
  if (folder.empty()) folder = ".";
  const int folder_descriptor = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder_descriptor < 0) return ErrnoStatus(errno, absl::StrCat("cannot open ", folder));
  const absl::Cleanup closer = [folder_descriptor] { close(folder_descriptor); };
  // Some network file systems have no fsync of folders.
  if (fsync(folder_descriptor) != 0 && errno != EINVAL && errno != ENOTSUP) {
    return ErrnoStatus(errno, absl::StrCat("cannot fsync ", folder));
  }
  return absl::OkStatus();
}

absl::Status WriteFileAtomically(const std::string& path, std::string_view contents) {
  US_ASSIGN_OR_RETURN(const std::unique_ptr<AtomicFileWriter> writer,
                      AtomicFileWriter::Create(path));
  US_RETURN_IF_ERROR(writer->Append(contents));
  return writer->Commit();
}

}  // namespace ultrasketch
