// Addresses to listen on: "host:port", "[ipv6]:port".
#ifndef ULTRASKETCH_SERVER_LISTEN_ADDRESS_H_
#define ULTRASKETCH_SERVER_LISTEN_ADDRESS_H_

#include <string>
#include <string_view>
#include <utility>
#include <vector>

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

// Whether only this machine reaches the address: all that the host's name stands for is loopback.
// Asks the resolver; false when the name is unknown.
bool IsLoopback(const ListenAddress& address);

// Sockets that listen on all addresses that a host's name stands for. `::` takes IPv4, too.
// Closed on destruction.
class ListeningSockets {
 public:
  // An error has the system's reason ("Address already in use").
  static absl::StatusOr<ListeningSockets> Open(const ListenAddress& address);
  ~ListeningSockets();
  ListeningSockets(ListeningSockets&& other) noexcept;
  ListeningSockets& operator=(ListeningSockets&& other) noexcept;

  // With the port that was picked: the same for all.
  const ListenAddress& address() const { return address_; }
  // Non-blocking, at least one until Close.
  const std::vector<int>& descriptors() const { return descriptors_; }

  // Takes no connections any more.
  void Close();

 private:
  explicit ListeningSockets(ListenAddress address) : address_(std::move(address)) {}

  ListenAddress address_;
  std::vector<int> descriptors_;
};

// Whether the address can be listened on now, with the system's reason when not ("Address already
// in use"). Listens for a moment.
absl::Status CheckCanListen(const ListenAddress& address);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_LISTEN_ADDRESS_H_
