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

// The models of a repository: every subfolder with a config.json, by name; possibly none. One that
// this process may not look into is skipped, which is logged. NOT_FOUND when there is no such
// repository.
absl::StatusOr<std::vector<ModelSource>> FindModels(const std::string& repository);

// The folder of one name. INVALID_ARGUMENT for a name that is no plain folder's name (a path, "..",
// a hidden folder), NOT_FOUND when there is no such folder or no config.json in it.
absl::StatusOr<ModelSource> FindModel(const std::string& repository, std::string_view name);

// Names, sizes, inodes and times of a model folder's files, as text: another text means that the
// model may be another. Empty when the folder cannot be read.
std::string FolderFingerprint(const std::string& folder);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_MODEL_REPOSITORY_H_
