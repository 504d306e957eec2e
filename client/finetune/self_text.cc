#include "client/finetune/self_text.h"

#include <signal.h>
#include <spawn.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include <sys/wait.h>

#include "engine/base/status.h"

namespace ultrasketch::cli {

absl::StatusOr<std::string> WriteSelfTextFile(const SelfTextRequest& request,
                                              const std::stop_token& stop) {
  const char* world_size = std::getenv("WORLD_SIZE");
  if (world_size != nullptr && std::string(world_size) != "1") {
    return absl::FailedPreconditionError(
        "--text self: one of several processes cannot write the text for all; write it first with "
        "'ultrasketch self-text', and give its file");
  }
  std::error_code error;
  std::filesystem::create_directories(request.training_folder, error);
  if (error) return ErrnoStatus(error.value(), request.training_folder);
  std::string path = absl::StrCat(request.training_folder, "/self-text.safetensors");
  if (request.reuse && std::filesystem::exists(path, error)) return path;

  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return ErrnoStatus(error.value(), "/proc/self/exe");
  std::vector<std::string> words = {(self.parent_path() / "ultrasketch").string(),
                                    "self-text",
                                    "--model",
                                    request.teacher,
                                    "--out",
                                    path,
                                    "--tokens",
                                    absl::StrCat(request.num_tokens),
                                    "--context",
                                    absl::StrCat(request.window_tokens),
                                    "--device",
                                    request.device,
                                    "--threads",
                                    absl::StrCat(request.num_threads),
                                    "--seed",
                                    absl::StrCat(request.seed),
                                    "--overwrite"};
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  // What it says goes to standard error: standard output is this program's result.
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
  pid_t child = 0;
  const int spawned =
      posix_spawn(&child, words[0].c_str(), &actions, nullptr, pointers.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (spawned == ENOENT) {
    return absl::UnavailableError(absl::StrCat(words[0], " is not there, which writes the text"));
  }
  if (spawned != 0) return ErrnoStatus(spawned, words[0]);
  // A terminal's Ctrl-C reaches the child as well, a signal to this process alone does not.
  const std::stop_callback pass_on(stop, [child] { kill(child, SIGTERM); });
  int state = 0;
  while (waitpid(child, &state, 0) < 0) {
    if (errno != EINTR) return ErrnoStatus(errno, words[0]);
  }
  if (WIFEXITED(state) && WEXITSTATUS(state) == 0) return path;
  if (stop.stop_requested()) {
    return absl::CancelledError("the teacher's text was not written to its end");
  }
  return absl::UnknownError("'ultrasketch self-text' failed");
}

}  // namespace ultrasketch::cli
