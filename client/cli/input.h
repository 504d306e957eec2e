// What the commands read: standard input, files and pipes.
#ifndef ULTRASKETCH_CLIENT_CLI_INPUT_H_
#define ULTRASKETCH_CLIENT_CLI_INPUT_H_

#include <cstdint>
#include <stop_token>
#include <string>

#include "absl/status/statusor.h"

namespace ultrasketch::cli {

inline constexpr int64_t kMaxInputBytes = int64_t{1} << 30;

// All of standard input. CANCELLED when `stop` is requested while it waits; RESOURCE_EXHAUSTED when
// there is more than kMaxInputBytes.
absl::StatusOr<std::string> ReadStandardInput(const std::stop_token& stop);

// The contents of a file, or what comes through a pipe or a device until its end: what the shell
// makes of <(COMMAND), a FIFO, /dev/stdin. INVALID_ARGUMENT for a folder, RESOURCE_EXHAUSTED for
// more than `max_bytes`, CANCELLED when `stop` is requested while it waits.
absl::StatusOr<std::string> ReadInput(const std::string& path, const std::stop_token& stop,
                                      int64_t max_bytes = kMaxInputBytes);

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_INPUT_H_
