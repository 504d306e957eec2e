#include "server/watched_files.h"

#include <utility>

#include "absl/time/clock.h"
#include <sys/stat.h>

namespace ultrasketch {
namespace {

// Ample: file systems stamp with the clock of the last timer tick.
constexpr absl::Duration kTimestampGranularity = absl::Milliseconds(100);

}  // namespace

WatchedFiles::WatchedFiles(std::vector<std::string> paths, absl::Duration interval)
    : paths_(std::move(paths)), interval_(interval) {}

bool WatchedFiles::HaveChanged() {
  const absl::Time now = absl::Now();
  if (now < next_look_) return false;
  next_look_ = now + interval_;
  std::vector<int64_t> found;
  bool is_settled = true;
  for (const std::string& path : paths_) {
    struct stat status = {};
    const bool is_there = stat(path.c_str(), &status) == 0;
    if (is_there && absl::TimeFromTimespec(status.st_mtim) > now - kTimestampGranularity) {
      is_settled = false;
    }
    found.insert(
        found.end(),
        {is_there ? 1 : 0, static_cast<int64_t>(status.st_dev), static_cast<int64_t>(status.st_ino),
         static_cast<int64_t>(status.st_size), static_cast<int64_t>(status.st_mtim.tv_sec),
         static_cast<int64_t>(status.st_mtim.tv_nsec)});
  }
  if (found == seen_) return false;
  seen_ = is_settled ? std::move(found) : std::vector<int64_t>();
  return true;
}

}  // namespace ultrasketch
