// The server's log: one line on standard error for each event that an operator would act on, in
// logfmt or as JSON:
//
//   time=2026-03-01T12:00:00.123Z level=info event=model_loaded model=small parameters=20400000
//   {"ts":"2026-03-01T12:00:00.123Z","level":"info","event":"model_loaded","model":"small",...}
//
// An event is always one line: what would break it is escaped. Thread-safe: lines are written
// whole.
#ifndef ULTRASKETCH_SERVER_LOG_H_
#define ULTRASKETCH_SERVER_LOG_H_

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace ultrasketch {

enum class LogLevel : uint8_t { kInfo, kWarning, kError };
enum class LogFormat : uint8_t { kText, kJson };

// A value that JSON has without quotes.
struct LogNumber {
  // A number's digits, as JSON takes them.
  explicit LogNumber(std::string digits) : text(std::move(digits)) {}
  template <std::integral T>
  explicit LogNumber(T number) : text(std::to_string(number)) {}

  std::string text;
};

struct LogField {
  LogField(std::string_view field_key, std::string text) : key(field_key), value(std::move(text)) {}
  LogField(std::string_view field_key, LogNumber number)
      : key(field_key), value(std::move(number.text)), is_number(true) {}

  std::string_view key;
  std::string value;
  bool is_number = false;
};

// From now on. Text at first.
void SetLogFormat(LogFormat format);

// A line on standard error. Lines that nobody reads, of a pipe that is full, are lost after a
// second, and counted in a line of their own when they are read again.
void LogEvent(LogLevel level, std::string_view event, std::initializer_list<LogField> fields = {});
void LogEvent(LogLevel level, std::string_view event, const std::vector<LogField>& fields);

// The line without its end.
std::string FormatLogLine(LogFormat format, absl::Time time, LogLevel level, std::string_view event,
                          const std::vector<LogField>& fields);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_LOG_H_
