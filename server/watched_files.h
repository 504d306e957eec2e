// Files that others replace while the server runs: certificates, keys, tokens.
#ifndef ULTRASKETCH_SERVER_WATCHED_FILES_H_
#define ULTRASKETCH_SERVER_WATCHED_FILES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace ultrasketch {

// Not thread-safe.
class WatchedFiles {
 public:
  // Looks at the files at most once in `interval`.
  WatchedFiles(std::vector<std::string> paths, absl::Duration interval);

  // Whether any of the files is another one than at the last call, as far as its identity, size and
  // time tell, or has come or gone. Symbolic links are followed. True at the first call, and again
  // after one that found a file just written: what is written next may have the same time.
  bool HaveChanged();

 private:
  const std::vector<std::string> paths_;
  const absl::Duration interval_;
  absl::Time next_look_ = absl::InfinitePast();
  std::vector<int64_t> seen_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_WATCHED_FILES_H_
