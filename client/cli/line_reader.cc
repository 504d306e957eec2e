#include "client/cli/line_reader.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>

#include <sys/eventfd.h>

#include "engine/base/check.h"
#include "engine/base/status.h"

namespace ultrasketch::cli {

LineReader::LineReader(int descriptor)
    : descriptor_(descriptor), woken_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  US_CHECK(woken_ >= 0);
}

LineReader::~LineReader() { close(woken_); }

absl::StatusOr<LineReader::Event> LineReader::Next(std::string* line) {
  while (true) {
    const size_t end = buffer_.find('\n', num_searched_);
    num_searched_ = buffer_.size();
    if (end != std::string::npos) {
      TakeLine(end, line);
      return Event::kLine;
    }
    if (at_end_) {
      if (buffer_.empty()) return Event::kEnd;
      TakeLine(buffer_.size(), line);
      return Event::kLine;
    }
    pollfd descriptors[] = {{woken_, POLLIN, 0}, {descriptor_, POLLIN, 0}};
    if (poll(descriptors, 2, -1) < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "waiting for standard input");
    }
    uint64_t count = 0;
    if (read(woken_, &count, sizeof(count)) == sizeof(count)) return Event::kWoken;
    if (descriptors[1].revents == 0) continue;
    std::array<char, 1 << 16> bytes;
    const ssize_t num_bytes = read(descriptor_, bytes.data(), bytes.size());
    if (num_bytes > 0) {
      buffer_.append(bytes.data(), static_cast<size_t>(num_bytes));
    } else if (num_bytes == 0) {
      at_end_ = true;
    } else if (errno != EINTR && errno != EAGAIN) {
      return ErrnoStatus(errno, "reading standard input");
    }
  }
}

void LineReader::DropPartialLine() {
  const size_t end = buffer_.rfind('\n');
  buffer_.resize(end == std::string::npos ? 0 : end + 1);
  num_searched_ = std::min(num_searched_, buffer_.size());
}

void LineReader::Wake() {
  const uint64_t one = 1;
  US_CHECK(write(woken_, &one, sizeof(one)) == sizeof(one));
}

void LineReader::TakeLine(size_t length, std::string* line) {
  line->assign(buffer_, 0, length);
  if (!line->empty() && line->back() == '\r') line->pop_back();
  buffer_.erase(0, length + 1);
  num_searched_ = 0;
}

}  // namespace ultrasketch::cli
