#include "client/cli/finetune.h"

#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"

namespace ultrasketch::cli {

absl::Status BecomeTrainer(absl::Span<const char* const> arguments) {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return ErrnoStatus(error.value(), "/proc/self/exe");
  const std::string trainer = (self.parent_path() / "ultrasketch-finetune").string();
  std::vector<const char*> words = {trainer.c_str()};
  words.insert(words.end(), arguments.begin(), arguments.end());
  words.push_back(nullptr);
  execv(trainer.c_str(), const_cast<char* const*>(words.data()));
  if (errno != ENOENT) return ErrnoStatus(errno, trainer);
  return absl::UnavailableError(
      absl::StrCat(trainer,
                   " is not there: it is built where there is a LibTorch. Install "
                   "libtorch-dev and build again (docs/finetuning.md)"));
}

}  // namespace ultrasketch::cli
