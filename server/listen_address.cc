#include "server/listen_address.h"

#include <netdb.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include <netinet/in.h>
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

// Whether the address stands before `info` in the list already: a name may have two lines in
// /etc/hosts.
bool IsRepeated(const addrinfo& list, const addrinfo& info) {
  for (const addrinfo* before = &list; before != &info; before = before->ai_next) {
    if (before->ai_addrlen == info.ai_addrlen &&
        std::memcmp(before->ai_addr, info.ai_addr, info.ai_addrlen) == 0) {
      return true;
    }
  }
  return false;
}

// A socket that listens on one address, with this port; nullopt and `error`, an errno, when it
// cannot.
std::optional<int> ListenOn(const addrinfo& info, int port, int& error) {
  const int descriptor =
      socket(info.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, info.ai_protocol);
  if (descriptor < 0) {
    error = errno;
    return std::nullopt;
  }
  const auto set = [descriptor](int level, int option, int value) {
    setsockopt(descriptor, level, option, &value, sizeof(value));
  };
  // A port that is only lingering from before is free.
  set(SOL_SOCKET, SO_REUSEADDR, 1);
  sockaddr_storage address = {};
  std::memcpy(&address, info.ai_addr, info.ai_addrlen);
  if (info.ai_family == AF_INET6) {
    auto& ipv6 = reinterpret_cast<sockaddr_in6&>(address);
    ipv6.sin6_port = htons(static_cast<uint16_t>(port));
    set(IPPROTO_IPV6, IPV6_V6ONLY, IN6_IS_ADDR_UNSPECIFIED(&ipv6.sin6_addr) ? 0 : 1);
  } else {
    reinterpret_cast<sockaddr_in&>(address).sin_port = htons(static_cast<uint16_t>(port));
  }
  if (bind(descriptor, reinterpret_cast<const sockaddr*>(&address), info.ai_addrlen) != 0 ||
      listen(descriptor, SOMAXCONN) != 0) {
    error = errno;
    close(descriptor);
    return std::nullopt;
  }
  return descriptor;
}

int PortOf(int descriptor) {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &size);
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<sockaddr_in&>(address).sin_port);
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

bool IsLoopback(const ListenAddress& address) {
  const absl::StatusOr<AddrinfoPtr> found = Resolve(address);
  if (!found.ok()) return false;
  for (const addrinfo* info = found->get(); info != nullptr; info = info->ai_next) {
    if (info->ai_family == AF_INET) {
      const auto* socket_address = reinterpret_cast<const sockaddr_in*>(info->ai_addr);
      if (ntohl(socket_address->sin_addr.s_addr) >> 24 != 127) return false;
    } else if (info->ai_family == AF_INET6) {
      const auto* socket_address = reinterpret_cast<const sockaddr_in6*>(info->ai_addr);
      if (!IN6_IS_ADDR_LOOPBACK(&socket_address->sin6_addr)) return false;
    } else {
      return false;
    }
  }
  return true;
}

absl::StatusOr<ListeningSockets> ListeningSockets::Open(const ListenAddress& address) {
  ListeningSockets sockets(address);
  US_ASSIGN_OR_RETURN(const AddrinfoPtr found, Resolve(address));
  int error = 0;
  for (const addrinfo* info = found.get(); info != nullptr; info = info->ai_next) {
    if (IsRepeated(*found, *info)) continue;
    const std::optional<int> descriptor = ListenOn(*info, sockets.address_.port, error);
    if (descriptor.has_value()) {
      sockets.descriptors_.push_back(*descriptor);
      // The other addresses get the port that the first has picked.
      sockets.address_.port = PortOf(*descriptor);
    } else if (error != EAFNOSUPPORT && error != EADDRNOTAVAIL) {
      return ErrnoStatus(error, absl::StrCat("cannot listen on ", address.ToString()));
    }
  }
  // A machine without IPv6 may still know localhost's address in it.
  if (sockets.descriptors_.empty()) {
    return ErrnoStatus(error, absl::StrCat("cannot listen on ", address.ToString()));
  }
  return sockets;
}

ListeningSockets::~ListeningSockets() { Close(); }

ListeningSockets::ListeningSockets(ListeningSockets&& other) noexcept
    : address_(std::move(other.address_)), descriptors_(std::exchange(other.descriptors_, {})) {}

ListeningSockets& ListeningSockets::operator=(ListeningSockets&& other) noexcept {
  if (this == &other) return *this;
  Close();
  address_ = std::move(other.address_);
  descriptors_ = std::exchange(other.descriptors_, {});
  return *this;
}

void ListeningSockets::Close() {
  for (const int descriptor : descriptors_) close(descriptor);
  descriptors_.clear();
}

absl::Status CheckCanListen(const ListenAddress& address) {
  return ListeningSockets::Open(address).status();
}

}  // namespace ultrasketch
