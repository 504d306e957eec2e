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
#include "server/log.h"
#include "server/status.h"

namespace ultrasketch {
namespace {

bool HasConfig(const std::filesystem::path& folder) {
  const std::filesystem::path config = folder / "config.json";
  std::error_code error;
  if (std::filesystem::is_regular_file(config, error)) return true;
  if (error.value() == EACCES) {
    // It may be no model: a file system's lost+found is such a folder.
    LogEvent(LogLevel::kWarning, "folder_skipped",
             {{"folder", folder.string()},
              {"message", std::string(CannotOpen(EACCES, config.string()).message())}});
  }
  return false;
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
    if (IsFolderName(name) && HasConfig(entry->path())) {
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
  if (!HasConfig(folder)) {
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
