#include "client/cli/chat_messages.h"

#include "absl/strings/str_cat.h"

#include "client/cli/input.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/format/json.h"

namespace ultrasketch::cli {

absl::StatusOr<client::Chat> ParseMessages(std::string_view json, std::string_view name) {
  const absl::StatusOr<nlohmann::json> parsed = ParseJson(json, name);
  if (!parsed.ok()) return absl::InvalidArgumentError(parsed.status().message());
  if (!parsed->is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat(A(name), ": expected an array of messages, found ", DescribeJson(&*parsed)));
  }
  client::Chat chat;
  for (const nlohmann::json& entry : *parsed) {
    const std::string place = absl::StrCat(A(name), ": message ", chat.messages.size());
    if (!entry.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(
          place, ": expected an object with role and content, found ", DescribeJson(&entry)));
    }
    client::ChatMessage message;
    for (const auto& [key, value] : entry.items()) {
      if (key != "role" && key != "content") {
        return absl::InvalidArgumentError(
            absl::StrCat(place, ": expected role and content alone, found ", Quoted(key, 64)));
      }
      if (!value.is_string()) {
        return absl::InvalidArgumentError(
            absl::StrCat(place, ": ", key, ": expected a string, found ", DescribeJson(&value)));
      }
      (key == "role" ? message.role : message.content) = value.get<std::string>();
    }
    for (const char* key : {"role", "content"}) {
      if (!entry.contains(key)) {
        return absl::InvalidArgumentError(absl::StrCat(place, " has no ", key));
      }
    }
    chat.messages.push_back(std::move(message));
  }
  return chat;
}

absl::StatusOr<client::Chat> ReadMessages(const std::string& path, const std::stop_token& stop) {
  const bool is_stdin = path == "-";
  US_ASSIGN_OR_RETURN(const std::string json,
                      is_stdin ? ReadStandardInput(stop) : ReadInput(path, stop));
  return ParseMessages(json, is_stdin ? "standard input" : path);
}

}  // namespace ultrasketch::cli
