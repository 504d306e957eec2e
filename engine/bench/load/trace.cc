#include "engine/bench/load/trace.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/bench/load/lengths.h"
#include "engine/format/json.h"

namespace ultrasketch {
namespace {

// Some 300 years: later ones would overflow clocks.
constexpr double kMaxTimestampMilliseconds = 1e13;

absl::Status Wrong(std::string_view where, const char* key, std::string_view expected,
                   const nlohmann::json* found) {
  return absl::InvalidArgumentError(absl::StrCat(A(where), ": expected ", key, " to be ",
                                                 A(expected), ", found ", DescribeJson(found)));
}

absl::StatusOr<int64_t> ParseLength(const nlohmann::json& object, const char* key,
                                    std::string_view where) {
  const nlohmann::json* value = FindMember(object, key);
  // A number of a float's spelling, such as 12.0, is a length, too.
  const double number = value != nullptr && value->is_number() ? value->get<double>() : 0;
  if (!(number >= 1 && number <= static_cast<double>(kMaxLoadTokens)) ||
      number != std::floor(number)) {
    return Wrong(where, key, absl::StrCat("a number of tokens from 1 to ", kMaxLoadTokens), value);
  }
  return static_cast<int64_t>(number);
}

absl::StatusOr<TraceEntry> ParseEntry(absl::string_view line, std::string_view where) {
  absl::StatusOr<nlohmann::json> json = ParseJson(S(line), where);
  if (!json.ok()) return absl::InvalidArgumentError(json.status().message());
  if (!json->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(A(where), ": expected an object, found ", DescribeJson(&*json)));
  }
  TraceEntry entry;
  const nlohmann::json* timestamp = FindMember(*json, "timestamp");
  const double milliseconds =
      timestamp != nullptr && timestamp->is_number() ? timestamp->get<double>() : -1;
  if (!(milliseconds >= 0 && milliseconds <= kMaxTimestampMilliseconds)) {
    return Wrong(where, "timestamp", "milliseconds from 0 to 1e13", timestamp);
  }
  entry.arrival_seconds = milliseconds * 1e-3;
  US_ASSIGN_OR_RETURN(entry.prompt_tokens, ParseLength(*json, "input_length", where));
  US_ASSIGN_OR_RETURN(entry.output_tokens, ParseLength(*json, "output_length", where));
  const nlohmann::json* hash_ids = FindMember(*json, "hash_ids");
  if (hash_ids == nullptr) return entry;
  const char* const kExpectedIds = "an array of whole numbers from 0 to 2^64 - 1";
  if (!hash_ids->is_array()) return Wrong(where, "hash_ids", kExpectedIds, hash_ids);
  for (const nlohmann::json& id : *hash_ids) {
    if (!id.is_number_unsigned()) {
      return Wrong(where, "hash_ids", kExpectedIds, &id);
    }
    entry.hash_ids.push_back(id.get<uint64_t>());
  }
  const int64_t num_blocks = (entry.prompt_tokens + kTraceBlockTokens - 1) / kTraceBlockTokens;
  if (static_cast<int64_t>(entry.hash_ids.size()) > num_blocks) {
    return absl::InvalidArgumentError(absl::StrCat(
        A(where), ": expected at most ", num_blocks, " hash_ids, one for ", kTraceBlockTokens,
        " of the ", entry.prompt_tokens, " tokens, found ", entry.hash_ids.size()));
  }
  return entry;
}

}  // namespace

absl::StatusOr<std::vector<TraceEntry>> ParseTrace(std::string_view text,
                                                   std::string_view description) {
  std::vector<TraceEntry> entries;
  int64_t line_number = 0;
  for (const absl::string_view line : absl::StrSplit(A(text), '\n')) {
    ++line_number;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    const std::string where = absl::StrCat(A(description), ":", line_number);
    US_ASSIGN_OR_RETURN(TraceEntry entry, ParseEntry(line, where));
    if (!entries.empty() && entry.arrival_seconds < entries.back().arrival_seconds) {
      return absl::InvalidArgumentError(absl::StrCat(
          where, ": expected timestamp to be at least the one before, ",
          entries.back().arrival_seconds * 1e3, ", found ", entry.arrival_seconds * 1e3));
    }
    entries.push_back(std::move(entry));
  }
  if (entries.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(A(description), ": expected a JSON object a line, found none"));
  }
  const double first = entries.front().arrival_seconds;
  for (TraceEntry& entry : entries) entry.arrival_seconds -= first;
  return entries;
}

absl::StatusOr<std::vector<TraceEntry>> ReadTrace(const std::string& path) {
  US_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseTrace(text, path);
}

}  // namespace ultrasketch
