#include "client/cli/output.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "engine/base/status.h"

namespace ultrasketch::cli {
namespace {

constexpr char kBrokenPipePayload[] = "ultrasketch/broken-pipe";

// Columns that a terminal needs for UTF-8 text without wide or combining characters.
size_t DisplayWidth(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

}  // namespace

absl::Status WriteOutput(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = write(STDOUT_FILENO, text.data(), text.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      if (errno == EPIPE) {
        absl::Status status = absl::CancelledError("the reader of standard output has gone away");
        status.SetPayload(kBrokenPipePayload, absl::Cord());
        return status;
      }
      return ErrnoStatus(errno, "writing to standard output");
    }
    text.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

std::string ForTerminal(std::string_view text) {
  std::string result;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7F) {
      result += "\uFFFD";
    } else {
      result += c;
    }
  }
  return result;
}

bool IsBrokenPipe(const absl::Status& status) {
  return status.GetPayload(kBrokenPipePayload).has_value();
}

absl::Status WriteJson(const nlohmann::ordered_json& object) {
  return WriteOutput(FormatJson(object));
}

std::string FormatJson(const nlohmann::ordered_json& object) {
  const auto compact = [](const nlohmann::ordered_json& value) {
    return value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  };
  std::vector<std::string> members;
  for (const auto& [key, value] : object.items()) {
    std::string text = compact(value);
    if (value.is_array() && !value.empty() && value.front().is_object()) {
      std::vector<std::string> elements;
      for (const auto& element : value) elements.push_back("    " + compact(element));
      text = absl::StrCat("[\n", absl::StrJoin(elements, ",\n"), "\n  ]");
    }
    members.push_back(absl::StrCat("  ", compact(key), ": ", text));
  }
  return absl::StrCat("{\n", absl::StrJoin(members, ",\n"), "\n}\n");
}

std::string FormatTable(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], DisplayWidth(row[i]));
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - DisplayWidth(row[i]), ' ');
      if (i == 0) {
        absl::StrAppend(&line, row[i], padding);
      } else {
        absl::StrAppend(&line, "  ", padding, row[i]);
      }
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&text, line, "\n");
  }
  return text;
}

std::string WithThousands(int64_t number) {
  std::string digits = absl::StrCat(number);
  const size_t first = number < 0 ? 1 : 0;
  for (size_t end = digits.size(); end > first + 3; end -= 3) digits.insert(end - 3, ",");
  return digits;
}

}  // namespace ultrasketch::cli
