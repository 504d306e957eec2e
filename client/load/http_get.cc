#include "client/load/http_get.h"

#include <netdb.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include <sys/socket.h>

#include "engine/base/status.h"
#include "engine/base/strings.h"

namespace ultrasketch::client {
namespace {

constexpr size_t kMaxBytes = size_t{1} << 26;

std::string Name(const HttpUrl& url) {
  const bool is_ipv6 = absl::StrContains(url.host, ":");
  return absl::StrCat("http://", is_ipv6 ? "[" : "", url.host, is_ipv6 ? "]" : "", ":", url.port,
                      url.path);
}

absl::Status Unavailable(const HttpUrl& url, std::string_view why) {
  return absl::UnavailableError(absl::StrCat(Name(url), ": ", A(why)));
}

// Whether `descriptor` is ready for `events` before the deadline.
bool WaitFor(int descriptor, short events, absl::Time deadline) {
  const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
  pollfd entry = {descriptor, events, 0};
  return poll(&entry, 1, static_cast<int>(std::clamp<int64_t>(left, 0, 3'600'000))) > 0;
}

// A connected, non-blocking socket; -1 when `address` cannot be reached in time.
int ConnectTo(const addrinfo& address, absl::Time deadline) {
  const int descriptor = socket(
      address.ai_family, address.ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, address.ai_protocol);
  if (descriptor < 0) return -1;
  int error = 0;
  socklen_t size = sizeof(error);
  if (connect(descriptor, address.ai_addr, address.ai_addrlen) == 0 ||
      (errno == EINPROGRESS && WaitFor(descriptor, POLLOUT, deadline) &&
       getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0)) {
    return descriptor;
  }
  close(descriptor);
  return -1;
}

absl::StatusOr<int> Connect(const HttpUrl& url, absl::Time deadline) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* addresses = nullptr;
  const int error = getaddrinfo(url.host.c_str(), url.port.c_str(), &hints, &addresses);
  if (error != 0) return Unavailable(url, gai_strerror(error));
  const absl::Cleanup free_addresses = [addresses] { freeaddrinfo(addresses); };
  for (const addrinfo* address = addresses; address != nullptr; address = address->ai_next) {
    const int descriptor = ConnectTo(*address, deadline);
    if (descriptor >= 0) return descriptor;
  }
  return Unavailable(url, "cannot connect");
}

}  // namespace

absl::StatusOr<HttpUrl> ParseHttpUrl(std::string_view text) {
  const auto wrong = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat("expected http://HOST:PORT/metrics, found ", A(Quoted(text))));
  };
  absl::string_view rest = A(text);
  const bool has_odd_characters = std::any_of(
      text.begin(), text.end(), [](char c) { return c <= ' ' || c == '@' || c == '\x7f'; });
  if (has_odd_characters || !absl::ConsumePrefix(&rest, "http://")) return wrong();
  HttpUrl url;
  const size_t slash = std::min(rest.find('/'), rest.size());
  url.path = std::string(rest.substr(slash));
  if (url.path.empty()) url.path = "/metrics";
  absl::string_view authority = rest.substr(0, slash);
  absl::string_view port;
  if (absl::ConsumePrefix(&authority, "[")) {
    const size_t end = authority.find(']');
    if (end == absl::string_view::npos) return wrong();
    url.host = std::string(authority.substr(0, end));
    port = authority.substr(end + 1);
  } else {
    const size_t colon = std::min(authority.find(':'), authority.size());
    url.host = std::string(authority.substr(0, colon));
    port = authority.substr(colon);
  }
  int number = 0;
  if (absl::ConsumePrefix(&port, ":")) {
    if (!absl::SimpleAtoi(port, &number) || number < 1 || number > 65535) return wrong();
    url.port = absl::StrCat(number);
  } else if (!port.empty()) {
    return wrong();
  }
  if (url.host.empty()) return wrong();
  return url;
}

absl::StatusOr<std::string> HttpGet(const HttpUrl& url, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  US_ASSIGN_OR_RETURN(const int descriptor, Connect(url, deadline));
  const absl::Cleanup close_descriptor = [descriptor] { close(descriptor); };
  // HTTP/1.0: the answer comes in one piece, and its end is the connection's.
  const std::string request =
      absl::StrCat("GET ", url.path, " HTTP/1.0\r\nHost: ", url.host, "\r\n\r\n");
  if (!WaitFor(descriptor, POLLOUT, deadline) ||
      send(descriptor, request.data(), request.size(), MSG_NOSIGNAL) !=
          static_cast<ssize_t>(request.size())) {
    return Unavailable(url, "cannot send the request");
  }
  std::string answer;
  char buffer[1 << 14];
  while (true) {
    if (!WaitFor(descriptor, POLLIN, deadline)) {
      return Unavailable(url, absl::StrCat("no answer in ", absl::FormatDuration(timeout)));
    }
    const ssize_t count = recv(descriptor, buffer, sizeof(buffer), 0);
    if (count < 0) return Unavailable(url, strerror(errno));
    if (count == 0) break;
    answer.append(buffer, static_cast<size_t>(count));
    if (answer.size() > kMaxBytes) return Unavailable(url, "the answer is more than 64 MiB");
  }
  const size_t line_end = std::min(answer.find("\r\n"), answer.size());
  const size_t body = answer.find("\r\n\r\n");
  const absl::string_view status_line = absl::string_view(answer).substr(0, line_end);
  const std::vector<absl::string_view> words = absl::StrSplit(status_line, ' ');
  if (body == std::string::npos || words.size() < 2 || words[1] != "200") {
    return Unavailable(
        url, absl::StrCat("expected an answer with status 200, found ", A(Quoted(S(status_line)))));
  }
  return answer.substr(body + 4);
}

}  // namespace ultrasketch::client
