// Git LFS pointers: the small text files that a clone has in the place of large ones until
// `git lfs pull`. Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
#ifndef ULTRASKETCH_ENGINE_FORMAT_GIT_LFS_H_
#define ULTRASKETCH_ENGINE_FORMAT_GIT_LFS_H_

#include <string_view>

#include "absl/status/status.h"

namespace ultrasketch {

// DATA_LOSS, saying what to do, when `contents`, of the file `path`, is such a pointer.
absl::Status RefuseGitLfsPointer(std::string_view contents, std::string_view path);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_GIT_LFS_H_
