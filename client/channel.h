// Connections to a server: the one place where they are made.
#ifndef ULTRASKETCH_CLIENT_CHANNEL_H_
#define ULTRASKETCH_CLIENT_CHANNEL_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include <grpcpp/channel.h>

namespace ultrasketch::client {

struct ChannelOptions {
  // A TCP connection of its own. Otherwise channels to the same target with the same options share
  // one.
  bool own_connection = false;
};

// Takes and sends messages of any size. `target` as in Client::Create: INVALID_ARGUMENT when empty.
// Does not connect yet.
absl::StatusOr<std::shared_ptr<grpc::Channel>> CreateChannel(const std::string& target,
                                                             const ChannelOptions& options = {});

}  // namespace ultrasketch::client

#endif  // ULTRASKETCH_CLIENT_CHANNEL_H_
