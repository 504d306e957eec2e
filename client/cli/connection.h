// The options of every subcommand that talks to a server.
#ifndef ULTRASKETCH_CLIENT_CLI_CONNECTION_H_
#define ULTRASKETCH_CLIENT_CLI_CONNECTION_H_

#include <memory>
#include <stop_token>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include <CLI/CLI.hpp>

#include "client/channel.h"
#include "client/client.h"

namespace ultrasketch::cli {

class Connection {
 public:
  // Adds --target, described by `target_description`, and what the connection is to be like.
  // Returns the option --target. May be called for several subcommands, one of which is run.
  CLI::Option* Declare(CLI::App& app, const std::string& target_description);

  // What is wrong with the combination of options; "" when nothing is.
  std::string UsageError() const;

  const std::string& target() const { return target_; }

  // Reads the files, or pipes, that the options name, until `stop` is requested. The token is that
  // of --token-file, or else of the environment variable ULTRASKETCH_TOKEN.
  absl::StatusOr<client::ChannelOptions> ReadOptions(const std::stop_token& stop) const;

  absl::StatusOr<std::unique_ptr<client::Client>> Connect(const std::stop_token& stop) const;

 private:
  std::string target_;
  bool tls_ = false;
  std::string tls_ca_;
  std::string tls_certificate_;
  std::string tls_key_;
  std::string tls_server_name_;
  std::string token_file_;
  bool insecure_ = false;
};

// The token in a file: the first line that is neither empty nor a comment, of which the part after
// the last colon, so that a server's file will do. INVALID_ARGUMENT when there is none.
absl::StatusOr<std::string> ParseTokenFile(std::string_view text);

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_CONNECTION_H_
