// A progress bar on the terminal.
#ifndef ULTRASKETCH_CLIENT_CLI_PROGRESS_H_
#define ULTRASKETCH_CLIENT_CLI_PROGRESS_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace ultrasketch::cli {

// What is known about some work under way.
struct ProgressState {
  std::string label;  // "compressing"
  std::string unit;   // "tokens": what done and total count; "%": they are a share, of 100
  double done = 0;
  double total = 0;  // 0: not known
  absl::Duration elapsed;
};

// One line without a newline, at most `columns` characters: label, bar, share, count, rate and time
// left. What does not fit is left out, the bar first, the share last.
std::string RenderProgress(const ProgressState& state, int columns);

// Draws to standard error when that is a terminal and the work has taken more than a second, at
// most ten times a second; silent otherwise. The line is wiped on destruction. Thread-safe.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // `total` 0: not known.
  void Update(int64_t done, int64_t total, std::string_view unit);

  // Work that is measured as a fraction of the whole, in [0, 1]; `stage` is what it is at.
  void UpdateFraction(std::string_view stage, double fraction);

 private:
  void Draw(ProgressState state);

  const std::string label_;
  const bool enabled_;
  const absl::Time start_;
  absl::Mutex mutex_;
  absl::Time last_drawn_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
};

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_PROGRESS_H_
