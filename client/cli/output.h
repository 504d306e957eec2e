// Standard output of the commands.
#ifndef ULTRASKETCH_CLIENT_CLI_OUTPUT_H_
#define ULTRASKETCH_CLIENT_CLI_OUTPUT_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"

namespace ultrasketch::cli {

// Writes to standard output at once, unbuffered. When the reader has gone away (a closed pipe):
// CANCELLED, which IsBrokenPipe knows.
absl::Status WriteOutput(std::string_view text);
bool IsBrokenPipe(const absl::Status& status);

// `text` without the control characters that could move a terminal's cursor or worse: generated
// text could hold them.
std::string ForTerminal(std::string_view text);

// A JSON object, a member on a line, and so the elements of an array of objects. Text that is not
// UTF-8 gets U+FFFD in its place.
std::string FormatJson(const nlohmann::ordered_json& object);
absl::Status WriteJson(const nlohmann::ordered_json& object);

// Columns padded to their widest cell, two spaces between: the first column to the left, the others
// to the right. The first row is the heading.
std::string FormatTable(const std::vector<std::vector<std::string>>& rows);

// 1234567 as "1,234,567".
std::string WithThousands(int64_t number);

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_OUTPUT_H_
