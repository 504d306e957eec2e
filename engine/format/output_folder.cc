#include "engine/format/output_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include <sys/stat.h>

#include "engine/base/status.h"
#include "engine/format/json.h"
#include "engine/format/model_config.h"

namespace ultrasketch {
namespace {

namespace fs = std::filesystem;

absl::Status FromErrorCode(const std::error_code& error, std::string_view what) {
  return error ? ErrnoStatus(error.value(), what) : absl::OkStatus();
}

// Whether `path`, canonical, is `folder` or lies in it.
bool IsWithin(const fs::path& path, const fs::path& folder) {
  return std::mismatch(folder.begin(), folder.end(), path.begin(), path.end()).first ==
         folder.end();
}

bool IsMountPoint(const fs::path& folder) {
  struct stat status, parent;
  if (stat(folder.c_str(), &status) != 0) return false;
  if (stat((folder / "..").c_str(), &parent) != 0) return false;
  return status.st_dev != parent.st_dev || status.st_ino == parent.st_ino;
}

}  // namespace

absl::StatusOr<std::string> ResolveOutputFolder(absl::Span<const std::string> inputs,
                                                const std::string& folder, bool overwrite) {
  if (folder.empty()) return absl::InvalidArgumentError("the output folder has no name");
  std::error_code error;
  fs::path path = fs::weakly_canonical(fs::absolute(folder), error);
  if (error) return ErrnoStatus(error.value(), folder);
  if (!path.has_filename()) path = path.parent_path();
  const fs::file_status status = fs::symlink_status(path, error);
  if (!fs::exists(status)) return path.string();

  for (const std::string& source : inputs) {
    if (const fs::path canonical = fs::canonical(source, error);
        !error && IsWithin(canonical, path)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path.string(), ": the output folder is, or contains, ", source));
    }
  }
  if (fs::is_symlink(status)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path.string(), ": expected a folder, found a link to nothing"));
  }
  if (fs::is_directory(status) && (IsMountPoint(path) || path == fs::current_path(error))) {
    return absl::InvalidArgumentError(
        absl::StrCat(path.string(), ": a model takes the place of a folder, and cannot that of ",
                     IsMountPoint(path) ? "a mounted file system" : "the current folder",
                     "; name a folder in it"));
  }
  if (fs::is_directory(status) && fs::is_empty(path, error) && !error) return path.string();
  if (!overwrite) {
    return absl::AlreadyExistsError(
        absl::StrCat(path.string(), ": expected no such folder, or an empty one"));
  }
  if (!IsCompressedModel(path.string())) {
    return absl::FailedPreconditionError(absl::StrCat(
        path.string(), ": overwriting is for compressed models, and this is not one; remove it"));
  }
  return path.string();
}

bool IsCompressedModel(const std::string& folder) {
  const auto config = ReadJsonFile((fs::path(folder) / "config.json").string());
  if (!config.ok()) return false;
  const nlohmann::json* quantization = FindMember(*config, kQuantizationKey);
  const nlohmann::json* method =
      quantization == nullptr ? nullptr : FindMember(*quantization, "quant_method");
  return method != nullptr && *method == kQuantMethod;
}

absl::Status SyncFolder(const std::string& folder) {
  const int descriptor = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return ErrnoStatus(errno, folder);
  const absl::Cleanup close_descriptor = [descriptor] { close(descriptor); };
  if (fsync(descriptor) != 0) return ErrnoStatus(errno, folder);
  return absl::OkStatus();
}

absl::Status PublishFolder(const std::string& staged, const std::string& folder) {
  std::error_code error;
  if (!fs::exists(folder, error)) {
    fs::rename(staged, folder, error);
  } else if (renameat2(AT_FDCWD, staged.c_str(), AT_FDCWD, folder.c_str(), RENAME_EXCHANGE) != 0) {
    const std::string old = staged + ".old";
    fs::rename(folder, old, error);
    if (!error) {
      fs::rename(staged, folder, error);
      std::error_code ignored;
      fs::rename(old, error ? folder : staged, ignored);
    }
  }
  US_RETURN_IF_ERROR(FromErrorCode(error, folder));
  return SyncFolder(fs::path(folder).parent_path().string());
}

}  // namespace ultrasketch
