// Conversations in files.
#ifndef ULTRASKETCH_CLIENT_CLI_CHAT_MESSAGES_H_
#define ULTRASKETCH_CLIENT_CLI_CHAT_MESSAGES_H_

#include <stop_token>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

#include "client/client.h"

namespace ultrasketch::cli {

// A conversation from a JSON array of objects with the members role and content, both strings, and
// no others. INVALID_ARGUMENT, beginning with `name`, says which message is wrong.
absl::StatusOr<client::Chat> ParseMessages(std::string_view json, std::string_view name);

// ParseMessages of a file or a pipe, or of standard input when `path` is "-".
absl::StatusOr<client::Chat> ReadMessages(const std::string& path, const std::stop_token& stop);

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_CHAT_MESSAGES_H_
