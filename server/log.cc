#include "server/log.h"

#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

#include "engine/base/strings.h"

namespace ultrasketch {
namespace {

constexpr size_t kMaxValueBytes = 1024;

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

}  // namespace

std::string FormatEvent(std::string_view event, std::initializer_list<LogField> fields) {
  std::string line = absl::StrCat("event=", A(event));
  for (const LogField& field : fields) {
    absl::StrAppend(&line, " ", A(field.key), "=",
                    IsPlain(field.value) ? field.value : Quoted(field.value, kMaxValueBytes));
  }
  return line;
}

void LogEvent(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  const std::string line = absl::StrCat(
      "time=", absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone()),
      " level=", A(LevelName(level)), " ", FormatEvent(event, fields), "\n");
  // One write a line: lines of several threads do not mix.
  size_t written = 0;
  while (written < line.size()) {
    const ssize_t result = write(STDERR_FILENO, line.data() + written, line.size() - written);
    if (result < 0 && errno == EINTR) continue;
    if (result <= 0) return;
    written += static_cast<size_t>(result);
  }
}

}  // namespace ultrasketch
