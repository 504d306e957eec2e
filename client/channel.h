// Connections to a server: the one place where they are made.
#ifndef ULTRASKETCH_CLIENT_CHANNEL_H_
#define ULTRASKETCH_CLIENT_CHANNEL_H_

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace grpc {
class Channel;
}

namespace ultrasketch::client {

// TLS as PEM text, not as paths.
struct TlsOptions {
  std::string ca{};  // whom the server's certificate must come from; empty: the system's roots
  std::string certificate{};  // the client's own, with its chain, for mutual TLS; empty: none
  std::string key{};          // the certificate's
  std::string server_name{};  // whom the server's certificate must name; empty: the target's host
};

struct ChannelOptions {
  // A TCP connection of its own. Otherwise channels to the same target with the same options share
  // one.
  bool own_connection = false;
  // Whether gRPC may send a call again that the server has not seen.
  bool retries = true;
  std::optional<TlsOptions> tls{};  // unset: plain text
  std::string token{};              // sent with every call as a bearer token; empty: none
  // Send the token in plain text to other machines, too.
  bool insecure_token = false;
};

// Whether `target` can only be this machine: an address of 127.0.0.0/8, ::1, the name localhost or
// a Unix socket; of several addresses, all of them. The Python client goes by the same rule.
bool IsLoopback(std::string_view target);

// INVALID_ARGUMENT for a token that would break the header it is sent in: expected is printable
// ASCII without spaces.
absl::Status CheckToken(std::string_view token);

// Takes and sends messages of any size. `target` as in Client::Create: INVALID_ARGUMENT when empty,
// when there is a certificate without its key or the other way, for a token that CheckToken refuses
// and for one that other machines would get in plain text. Calls to this machine take no proxy,
// which the environment may name for others. Does not connect yet.
absl::StatusOr<std::shared_ptr<grpc::Channel>> CreateChannel(const std::string& target,
                                                             const ChannelOptions& options = {});

}  // namespace ultrasketch::client

#endif  // ULTRASKETCH_CLIENT_CHANNEL_H_
