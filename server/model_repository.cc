#include "server/model_repository.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include <sys/stat.h>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "server/status.h"

namespace ultrasketch {
namespace {

// Whether a folder of the repository is a model's, whole or broken: it has a config.json, of
// whatever kind, or weights without one; or it cannot be looked into. Why that is not a model to
// serve is for loading to find.
bool IsModelFolder(const std::filesystem::path& folder) {
  std::error_code error;
  const auto kind = std::filesystem::status(folder, error).type();
  if (kind == std::filesystem::file_type::not_found) {
    // A link that leads nowhere, or nothing.
    return std::filesystem::is_symlink(std::filesystem::symlink_status(folder, error));
  }
  if (!error && kind != std::filesystem::file_type::directory) return false;
  // Of a file system, and root's alone.
  if (folder.filename() == "lost+found") return false;
  if (struct stat info; lstat((folder / "config.json").c_str(), &info) == 0) return true;
  if (errno != ENOENT) return true;
  for (auto entry = std::filesystem::directory_iterator(folder, error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    if (entry->path().extension() == ".safetensors") return true;
  }
  return static_cast<bool>(error);
}

bool IsFolderName(std::string_view name) {
  return !name.empty() && name.front() != '.' && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

}  // namespace

absl::StatusOr<std::vector<ModelSource>> FindModels(const std::string& repository) {
  std::vector<ModelSource> sources;
  std::error_code error;
  for (auto entry = std::filesystem::directory_iterator(repository, error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (IsFolderName(name) && IsModelFolder(entry->path())) {
      sources.push_back({name, entry->path().string()});
    }
  }
  if (error) {
    return ErrnoStatus(error.value(),
                       absl::StrCat("cannot read the model repository ", repository));
  }
  std::sort(sources.begin(), sources.end(),
            [](const ModelSource& a, const ModelSource& b) { return a.name < b.name; });
  return sources;
}

absl::StatusOr<ModelSource> FindModel(const std::string& repository, std::string_view name) {
  if (!IsFolderName(name)) {
    return InvalidField("name", absl::StrCat(Quoted(name), " is no name of a folder"));
  }
  const std::filesystem::path folder = std::filesystem::path(repository) / std::string(name);
  if (!IsModelFolder(folder)) {
    return absl::NotFoundError(
        absl::StrCat("model ", Quoted(name), ": there is no ", (folder / "config.json").string()));
  }
  return ModelSource{std::string(name), folder.string()};
}

std::string FolderFingerprint(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code error;
  for (auto entry = std::filesystem::directory_iterator(folder, error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    std::error_code ignored;
    if (!entry->is_regular_file(ignored)) continue;
    struct stat file = {};
    if (stat(entry->path().c_str(), &file) != 0) continue;
    files.push_back(absl::StrCat(entry->path().filename().string(), " ", file.st_size, " ",
                                 file.st_dev, " ", file.st_ino, " ", file.st_mtim.tv_sec, ".",
                                 file.st_mtim.tv_nsec, " ", file.st_ctim.tv_sec, ".",
                                 file.st_ctim.tv_nsec));
  }
  if (error) return "";
  std::sort(files.begin(), files.end());
  return absl::StrJoin(files, "\n");
}

}  // namespace ultrasketch
