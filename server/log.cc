#include "server/log.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "nlohmann/json.hpp"

#include "engine/base/strings.h"

namespace ultrasketch {
namespace {

constexpr size_t kMaxValueBytes = 1024;

std::atomic<LogFormat> log_format = LogFormat::kText;

std::string_view LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "error";
}

bool IsPlain(std::string_view value) {
  if (value.empty() || value.size() > kMaxValueBytes) return false;
  for (const char c : value) {
    if (c <= ' ' || c > '~' || c == '"' || c == '=' || c == '\\') return false;
  }
  return true;
}

// Ill-formed UTF-8 is replaced.
std::string JsonString(std::string_view value) {
  const bool is_cut = value.size() > kMaxValueBytes;
  std::string text(value.substr(0, kMaxValueBytes));
  if (is_cut) {
    // Not within a character.
    while (!text.empty() && (static_cast<unsigned char>(text.back()) & 0xC0) == 0x80) {
      text.pop_back();
    }
    if (!text.empty() && static_cast<unsigned char>(text.back()) >= 0xC0) text.pop_back();
    text += "...";
  }
  return nlohmann::json(text).dump(-1, ' ', /*ensure_ascii=*/false,
                                   nlohmann::json::error_handler_t::replace);
}

}  // namespace

void SetLogFormat(LogFormat format) { log_format = format; }

std::string FormatLogLine(LogFormat format, absl::Time time, LogLevel level, std::string_view event,
                          const std::vector<LogField>& fields) {
  const std::string timestamp = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", time, absl::UTCTimeZone());
  if (format == LogFormat::kText) {
    std::string line =
        absl::StrCat("time=", timestamp, " level=", A(LevelName(level)), " event=", A(event));
    for (const LogField& field : fields) {
      absl::StrAppend(&line, " ", A(field.key), "=",
                      IsPlain(field.value) ? field.value : Quoted(field.value, kMaxValueBytes));
    }
    return line;
  }
  std::string line = absl::StrCat("{\"ts\":\"", timestamp, "\",\"level\":\"", A(LevelName(level)),
                                  "\",\"event\":", JsonString(event));
  for (const LogField& field : fields) {
    absl::StrAppend(&line, ",", JsonString(field.key), ":",
                    field.is_number ? field.value : JsonString(field.value));
  }
  return line + "}";
}

namespace {

// Writes lines to standard error, one after the other. A pipe whose reader has stopped must not
// stop the server: it is waited for once; after that lines are lost until it reads again.
class LineWriter {
 public:
  void Write(std::string line) {
    absl::MutexLock lock(&mutex_);
    if (!AwaitReader(num_lost_ == 0 ? kPatienceMs : 0)) {
      ++num_lost_;
      return;
    }
    if (num_lost_ > 0) {
      line = absl::StrCat(FormatLogLine(log_format, absl::Now(), LogLevel::kWarning, "log_lost",
                                        {{"lines", LogNumber(std::exchange(num_lost_, 0))}}),
                          "\n", line);
    }
    line += '\n';
    size_t written = 0;
    do {
      // As much as a pipe takes at once when it takes anything.
      const size_t size = std::min<size_t>(line.size() - written, PIPE_BUF);
      const ssize_t result = write(STDERR_FILENO, line.data() + written, size);
      if (result < 0 && errno == EINTR) continue;
      if (result <= 0) return;
      written += static_cast<size_t>(result);
    } while (written < line.size() && AwaitReader(kPatienceMs));
  }

 private:
  static constexpr int kPatienceMs = 1000;

  // An error is for write to find.
  static bool AwaitReader(int milliseconds) {
    pollfd descriptor = {STDERR_FILENO, POLLOUT, 0};
    int ready = 0;
    do {
      ready = poll(&descriptor, 1, milliseconds);
    } while (ready < 0 && errno == EINTR);
    return ready != 0;
  }

  absl::Mutex mutex_;
  int64_t num_lost_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

void LogEvent(LogLevel level, std::string_view event, const std::vector<LogField>& fields) {
  static LineWriter& writer = *new LineWriter();  // also for who logs while the process exits
  writer.Write(FormatLogLine(log_format, absl::Now(), level, event, fields));
}

void LogEvent(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  LogEvent(level, event, std::vector<LogField>(fields));
}

}  // namespace ultrasketch
