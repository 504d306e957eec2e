#include "client/cli/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include <sys/ioctl.h>

#include "engine/base/strings.h"

namespace ultrasketch::cli {
namespace {

constexpr absl::Duration kQuietTime = absl::Seconds(1);
constexpr absl::Duration kInterval = absl::Milliseconds(100);
constexpr int kBarColumns = 30;
constexpr int kMinBarColumns = 8;

bool IsCapableTerminal() {
  if (isatty(STDERR_FILENO) == 0) return false;
  const char* terminal = std::getenv("TERM");
  return terminal != nullptr && *terminal != '\0' && std::string_view(terminal) != "dumb";
}

int TerminalColumns() {
  winsize size = {};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

// Three significant digits: "3.21", "48.0", "12.3k", "4.56M".
std::string FormatRate(double rate) {
  const char* suffix = "";
  if (rate >= 1e6) {
    rate /= 1e6;
    suffix = "M";
  } else if (rate >= 1e4) {
    rate /= 1e3;
    suffix = "k";
  }
  const int decimals = rate >= 100 ? 0 : rate >= 10 ? 1 : 2;
  return absl::StrFormat("%.*f%s", decimals, rate, suffix);
}

// "0:05", "12:34", "1:02:03".
std::string FormatClock(absl::Duration duration) {
  const int64_t seconds = std::min<int64_t>(
      absl::ToInt64Seconds(duration + absl::Milliseconds(500)), int64_t{99} * 3600);
  if (seconds >= 3600) {
    return absl::StrFormat("%d:%02d:%02d", seconds / 3600, seconds / 60 % 60, seconds % 60);
  }
  return absl::StrFormat("%d:%02d", seconds / 60, seconds % 60);
}

}  // namespace

std::string RenderProgress(const ProgressState& state, int columns) {
  const double seconds = absl::ToDoubleSeconds(state.elapsed);
  const double rate = seconds > 0 ? state.done / seconds : 0;
  const bool bounded = state.total > 0;
  const double share = bounded ? std::clamp(state.done / state.total, 0.0, 1.0) : 0;

  const std::string percent =
      bounded ? absl::StrFormat("%3d%%", static_cast<int>(share * 100)) : "";
  std::string count;
  if (state.unit != "%") {
    count = bounded ? absl::StrFormat("%.0f/%.0f %s", state.done, state.total, state.unit)
                    : absl::StrFormat("%.0f %s", state.done, state.unit);
  }
  std::string pace;
  if (rate > 0) {
    pace = absl::StrCat(FormatRate(rate), " ", state.unit, "/s");
    if (bounded) {
      const double left = std::max(state.total - state.done, 0.0) / rate;
      absl::StrAppend(&pace, "  ", FormatClock(absl::Seconds(left)), " left");
    }
  }

  // Longest first; the first that fits is shown.
  const auto join = [](const std::vector<std::string>& parts) {
    std::string line;
    for (const std::string& part : parts) {
      if (part.empty()) continue;
      if (!line.empty()) line += "  ";
      line += part;
    }
    return line;
  };
  const auto width = static_cast<size_t>(std::max(columns, 0));
  const std::string whole = join({state.label, percent, count, pace});
  if (bounded && whole.size() + 4 + kMinBarColumns <= width) {
    const int room = std::min<int>(kBarColumns, static_cast<int>(width - whole.size()) - 4);
    const int filled = static_cast<int>(share * room);
    const std::string bar = absl::StrCat("[", std::string(static_cast<size_t>(filled), '='),
                                         std::string(static_cast<size_t>(room - filled), ' '), "]");
    return join({state.label, bar, percent, count, pace});
  }
  for (const std::string& line :
       {whole, join({percent, count, pace}), join({percent, pace}), join({percent, count})}) {
    if (line.size() <= width) return line;
  }
  return (bounded ? percent : count).substr(0, width);
}

ProgressBar::ProgressBar(std::string label)
    : label_(std::move(label)), enabled_(IsCapableTerminal()), start_(absl::Now()) {}

ProgressBar::~ProgressBar() {
  absl::MutexLock lock(&mutex_);
  if (last_drawn_ != absl::InfinitePast()) std::fputs("\r\033[K", stderr);
}

void ProgressBar::Update(int64_t done, int64_t total, std::string_view unit) {
  if (!enabled_) return;
  Draw({label_, std::string(unit), static_cast<double>(done), static_cast<double>(total), {}});
}

void ProgressBar::UpdateFraction(std::string_view stage, double fraction) {
  if (!enabled_) return;
  Draw({absl::StrCat(label_, ": ", A(stage)), "%", fraction * 100, 100, {}});
}

void ProgressBar::Draw(ProgressState state) {
  const absl::Time now = absl::Now();
  absl::MutexLock lock(&mutex_);
  if (now - start_ < kQuietTime || now - last_drawn_ < kInterval) return;
  last_drawn_ = now;
  state.elapsed = now - start_;
  // The last column stays free: some terminals wrap as soon as it is written.
  const std::string line = RenderProgress(state, TerminalColumns() - 1);
  std::fprintf(stderr, "\r\033[K%s", line.c_str());
  std::fflush(stderr);
}

}  // namespace ultrasketch::cli
