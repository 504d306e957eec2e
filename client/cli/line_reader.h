// Lines of standard input, one at a time.
#ifndef ULTRASKETCH_CLIENT_CLI_LINE_READER_H_
#define ULTRASKETCH_CLIENT_CLI_LINE_READER_H_

#include <string>

#include "absl/status/statusor.h"

namespace ultrasketch::cli {

// Reads a descriptor, which it does not own. Used by one thread, but for Wake.
class LineReader {
 public:
  explicit LineReader(int descriptor);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  enum class Event { kLine, kEnd, kWoken };
  // Waits for a line, the end of the input, or Wake. `line` gets the line without its end ("\n" or
  // "\r\n"), or what stands before the end of the input; a line that has begun is kept when the
  // wait is ended by Wake.
  absl::StatusOr<Event> Next(std::string* line);

  // Drops what was read of a line that has not ended.
  void DropPartialLine();

  // Ends a Next that waits, or the next one. From any thread.
  void Wake();

 private:
  // Takes the first `length` bytes of the buffer, and the end of line after them.
  void TakeLine(size_t length, std::string* line);

  const int descriptor_;
  int woken_ = -1;  // eventfd
  std::string buffer_;
  size_t num_searched_ = 0;  // of the buffer: there is no end of line in them
  bool at_end_ = false;
};

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_LINE_READER_H_
