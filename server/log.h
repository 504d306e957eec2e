// The server's log: one line on standard error for each event that an operator would act on, in
// logfmt:
//
//   time=2026-03-01T12:00:00.123Z level=info event=model_loaded model=small codec=fold
//
// Values with spaces, quotes or control characters are quoted and escaped, so that a line is always
// one line. Thread-safe: lines are written whole.
#ifndef ULTRASKETCH_SERVER_LOG_H_
#define ULTRASKETCH_SERVER_LOG_H_

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace ultrasketch {

enum class LogLevel : uint8_t { kInfo, kWarning, kError };

struct LogField {
  std::string_view key;
  std::string value;
};

void LogEvent(LogLevel level, std::string_view event, std::initializer_list<LogField> fields = {});

// The line without time, level and end of line: "event=... key=value ...".
std::string FormatEvent(std::string_view event, std::initializer_list<LogField> fields);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_LOG_H_
