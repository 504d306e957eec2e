#include "engine/base/file.h"

#include <fcntl.h>
#include <pwd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <system_error>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include <sys/mman.h>
#include <sys/stat.h>

#include "engine/base/status.h"

namespace ultrasketch {
namespace {

namespace fs = std::filesystem;

std::string UserName(uid_t user) {
  passwd entry;
  passwd* found = nullptr;
  char buffer[1024];
  if (getpwuid_r(user, &entry, buffer, sizeof(buffer), &found) == 0 && found != nullptr) {
    return found->pw_name;
  }
  return absl::StrCat("user ", user);
}

// The file or folder whose mode keeps this process from reading `path`.
struct Denial {
  std::string path;
  bool is_folder;
  struct stat info;
};

std::optional<Denial> FindDenial(const std::string& path) {
  std::error_code error;
  fs::path target = fs::absolute(path, error);
  if (error) return std::nullopt;
  constexpr int kMaxLinks = 16;
  for (int links = 0; links < kMaxLinks; ++links) {
    struct stat info;
    fs::path folder;
    for (const fs::path& part : target.parent_path()) {
      folder /= part;
      if (stat(folder.c_str(), &info) != 0) break;
      if (S_ISDIR(info.st_mode) && faccessat(AT_FDCWD, folder.c_str(), X_OK, AT_EACCESS) != 0) {
        return Denial{folder.string(), true, info};
      }
    }
    if (stat(target.c_str(), &info) == 0) {
      return Denial{target.string(), S_ISDIR(info.st_mode), info};
    }
    // The folder that denies is on the way that a link shows.
    const fs::path shown = fs::read_symlink(target, error);
    if (error) return std::nullopt;
    target = (target.parent_path() / shown).lexically_normal();
  }
  return std::nullopt;
}

// Why permission to read `path` was denied and what to do, or "" where there is nothing to be seen.
std::string DescribeDenial(const std::string& path) {
  const std::optional<Denial> denial = FindDenial(path);
  if (!denial.has_value()) return "";
  char mode[8];
  std::snprintf(mode, sizeof(mode), "%04o", static_cast<unsigned>(denial->info.st_mode & 07777));
  const mode_t everybody = denial->is_folder ? S_IROTH | S_IXOTH : S_IROTH;
  return absl::StrCat(
      ": ", denial->path == path ? (denial->is_folder ? "this folder" : "it") : denial->path,
      " belongs to ", UserName(denial->info.st_uid), " and has mode ", mode,
      ", and this process runs as ", UserName(geteuid()),
      (denial->info.st_mode & everybody) == everybody
          ? "; look at access control lists, security modules and options of the file system"
          : absl::StrCat("; 'chmod a+r", denial->is_folder ? "x " : " ", denial->path,
                         "' lets everybody read it"));
}

// An open descriptor of the regular file at `path` and its size.
absl::StatusOr<int> OpenRegularFile(const std::string& path, int64_t* size) {
  // Without O_NONBLOCK, opening a pipe waits for its other end. Regular files ignore it.
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return CannotOpen(errno, path);
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

absl::Status CannotOpen(int error_number, const std::string& path) {
  const absl::Status status = ErrnoStatus(error_number, absl::StrCat("cannot open ", path));
  std::error_code error;
  if (const fs::path target = fs::read_symlink(path, error); error_number == ENOENT && !error) {
    return absl::Status(status.code(), absl::StrCat(status.message(), ": it is a link to ",
                                                    target.string(), ", which is not there"));
  }
  if (error_number != EACCES) return status;
  return absl::Status(status.code(), absl::StrCat(status.message(), DescribeDenial(path)));
}

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

absl::Status MappedFile::CheckIntact() const {
  if (!guard_->is_damaged()) return absl::OkStatus();
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(path_, error);
  const std::string found = error ? error.message() : absl::StrCat(size, " bytes");
  return absl::DataLossError(absl::StrCat(path_, ": expected ", size_, " bytes, found ", found,
                                          ": the file was cut short, or cannot be read any more, "
                                          "while it was in use"));
}

MappedFile::~MappedFile() {
  guard_.reset();
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
