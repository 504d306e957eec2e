// Addresses to listen on: "host:port", "[ipv6]:port".
#ifndef ULTRASKETCH_SERVER_LISTEN_ADDRESS_H_
#define ULTRASKETCH_SERVER_LISTEN_ADDRESS_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ultrasketch {

struct ListenAddress {
  std::string host;  // a name or a number; IPv6 without its brackets
  int port = 0;      // 0: any that is free

  std::string ToString() const;
};

// INVALID_ARGUMENT, saying what was expected.
absl::StatusOr<ListenAddress> ParseListenAddress(std::string_view text);

// The same with a number for the host. Asks the system's resolver, which may take seconds.
// INVALID_ARGUMENT when the name is unknown.
absl::StatusOr<ListenAddress> ResolveListenAddress(const ListenAddress& address);

// Whether the address can be listened on now, with the system's reason when not ("Address already
// in use"). Binds it for a moment.
absl::Status CheckCanListen(const ListenAddress& address);

// Opens a connection to the address and closes it. Failing is no error.
void ConnectOnce(const ListenAddress& address);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_LISTEN_ADDRESS_H_
