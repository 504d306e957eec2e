#include "client/cli/input.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include <sys/stat.h>

#include "engine/base/file.h"
#include "engine/base/status.h"

namespace ultrasketch::cli {
namespace {

// `name` is for errors.
absl::StatusOr<std::string> ReadToEnd(int descriptor, const std::string& name,
                                      const std::stop_token& stop, int64_t max_bytes) {
  constexpr int kPollMilliseconds = 50;
  std::string text;
  std::vector<char> buffer(1 << 16);
  while (true) {
    if (stop.stop_requested()) {
      return absl::CancelledError(absl::StrCat("stopped while reading ", name));
    }
    pollfd descriptors = {descriptor, POLLIN, 0};
    if (poll(&descriptors, 1, kPollMilliseconds) == 0) continue;
    const ssize_t count = read(descriptor, buffer.data(), buffer.size());
    if (count == 0) return text;
    if (count > 0) {
      text.append(buffer.data(), static_cast<size_t>(count));
      if (static_cast<int64_t>(text.size()) > max_bytes) {
        return absl::ResourceExhaustedError(
            absl::StrCat(name, " has more than ", max_bytes, " bytes, expected at most so many"));
      }
    } else if (errno != EINTR && errno != EAGAIN) {
      return ErrnoStatus(errno, absl::StrCat("reading ", name));
    }
  }
}

}  // namespace

absl::StatusOr<std::string> ReadStandardInput(const std::stop_token& stop) {
  return ReadToEnd(STDIN_FILENO, "standard input", stop, kMaxInputBytes);
}

absl::StatusOr<std::string> ReadInput(const std::string& path, const std::stop_token& stop,
                                      int64_t max_bytes) {
  // Not opened: it can be a socket, or another user's.
  if (path == "/dev/stdin") return ReadToEnd(STDIN_FILENO, path, stop, max_bytes);
  struct stat info;
  const bool is_there = stat(path.c_str(), &info) == 0;
  if (!is_there || S_ISREG(info.st_mode)) return ReadFile(path, max_bytes);
  if (S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected a file or a pipe, found a folder"));
  }
  // With O_NONBLOCK it is poll that waits for a FIFO's other end, and can be stopped.
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return CannotOpen(errno, path);
  const absl::Cleanup closer = [descriptor] { close(descriptor); };
  return ReadToEnd(descriptor, path, stop, max_bytes);
}

}  // namespace ultrasketch::cli
