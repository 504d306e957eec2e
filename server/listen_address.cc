#include "server/listen_address.h"

#include <netdb.h>
#include <unistd.h>

#include <cerrno>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include <sys/socket.h>

#include "engine/base/status.h"
#include "engine/base/strings.h"

namespace ultrasketch {
namespace {

struct FreeAddrinfo {
  void operator()(addrinfo* info) const { freeaddrinfo(info); }
};
using AddrinfoPtr = std::unique_ptr<addrinfo, FreeAddrinfo>;

absl::StatusOr<AddrinfoPtr> Resolve(const ListenAddress& address) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(address.host.c_str(), absl::StrCat(address.port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot resolve ", address.ToString(), ": ", gai_strerror(error)));
  }
  return AddrinfoPtr(found);
}

}  // namespace

std::string ListenAddress::ToString() const {
  const bool is_ipv6 = host.find(':') != std::string::npos;
  return is_ipv6 ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

absl::StatusOr<ListenAddress> ParseListenAddress(std::string_view text) {
  const size_t colon = text.rfind(':');
  ListenAddress address;
  if (colon != std::string_view::npos) {
    std::string_view host = text.substr(0, colon);
    if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
      host = host.substr(1, host.size() - 2);
    } else if (host.find_first_of(":[]/ ") != std::string_view::npos) {
      host = {};
    }
    address.host = std::string(host);
  }
  if (address.host.empty() || !absl::SimpleAtoi(A(text.substr(colon + 1)), &address.port) ||
      address.port < 0 || address.port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat(
        "expected HOST:PORT such as 127.0.0.1:8001, 0.0.0.0:8001 or [::1]:8001, found ",
        Quoted(text)));
  }
  return address;
}

absl::StatusOr<ListenAddress> ResolveListenAddress(const ListenAddress& address) {
  US_ASSIGN_OR_RETURN(const AddrinfoPtr found, Resolve(address));
  char host[NI_MAXHOST];
  const int error = getnameinfo(found->ai_addr, found->ai_addrlen, host, sizeof(host), nullptr, 0,
                                NI_NUMERICHOST);
  if (error != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot resolve ", address.ToString(), ": ", gai_strerror(error)));
  }
  return ListenAddress{host, address.port};
}

absl::Status CheckCanListen(const ListenAddress& address) {
  US_ASSIGN_OR_RETURN(const AddrinfoPtr found, Resolve(address));
  const int descriptor = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const auto failure = [&address](int error) {
    return ErrnoStatus(error, absl::StrCat("cannot listen on ", address.ToString()));
  };
  if (descriptor < 0) return failure(errno);
  // As a server does: a port that is only lingering from before is free.
  const int yes = 1;
  setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  absl::Status status;
  if (bind(descriptor, found->ai_addr, found->ai_addrlen) != 0 || listen(descriptor, 1) != 0) {
    status = failure(errno);
  }
  close(descriptor);
  return status;
}

void ConnectOnce(const ListenAddress& address) {
  const absl::StatusOr<AddrinfoPtr> found = Resolve(address);
  if (!found.ok()) return;
  const addrinfo& info = **found;
  const int descriptor = socket(info.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (descriptor < 0) return;
  // What becomes of it is of no interest: that it arrives is enough.
  static_cast<void>(connect(descriptor, info.ai_addr, info.ai_addrlen) == 0);
  close(descriptor);
}

}  // namespace ultrasketch
