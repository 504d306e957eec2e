// Where models come from: folders on disk.
#ifndef ULTRASKETCH_SERVER_MODEL_REPOSITORY_H_
#define ULTRASKETCH_SERVER_MODEL_REPOSITORY_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace ultrasketch {

struct ModelSource {
  std::string name;
  std::string folder;
};

// The models of a repository, by name; possibly none: every subfolder with a config.json, and those
// of which it shows only when they are loaded what is wrong with them: with weights and no
// config.json, unreadable ones, links that lead nowhere. NOT_FOUND when there is no such
// repository.
absl::StatusOr<std::vector<ModelSource>> FindModels(const std::string& repository);

// The folder of one name. INVALID_ARGUMENT for a name that is no plain folder's name (a path, "..",
// a hidden folder), NOT_FOUND when it is none that FindModels finds.
absl::StatusOr<ModelSource> FindModel(const std::string& repository, std::string_view name);

// Names, sizes, inodes and times of a model folder's files, as text: another text means that the
// model may be another. Empty when the folder cannot be read.
std::string FolderFingerprint(const std::string& folder);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_MODEL_REPOSITORY_H_
