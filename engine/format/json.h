// JSON from untrusted files: bounded nesting, no duplicate keys, no exceptions.
#ifndef ULTRASKETCH_ENGINE_FORMAT_JSON_H_
#define ULTRASKETCH_ENGINE_FORMAT_JSON_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace ultrasketch {

// Nesting that ParseJson accepts: everything recursive over a parsed value is safe.
inline constexpr int kMaxJsonDepth = 64;

// The value of `text`, a JSON document of UTF-8. DATA_LOSS, its message starting with
// `description` (usually a path), for a syntax error, ill-formed UTF-8, a number that overflows a
// double (these with line and column), nesting deeper than kMaxJsonDepth, an object with a key
// twice, or a Git LFS pointer in the document's place.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, std::string_view description);

// ParseJson of a file; RESOURCE_EXHAUSTED when it is larger than `max_bytes`.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path,
                                            int64_t max_bytes = int64_t{1} << 28);

// What Python writes for a number that is not finite and JSON does not have: NaN, Infinity,
// -Infinity.
struct NonFiniteLiteral {
  std::string_view word;
  int64_t line;  // from 1
};

// `text` with null in the place of these words, outside of strings; `literals` gets them in order.
std::string ReplaceNonFiniteLiterals(std::string_view text,
                                     std::vector<NonFiniteLiteral>& literals);

// The member `key` of an object; null when `object` is no object, has no such member, or the member
// is JSON's null.
const nlohmann::json* FindMember(const nlohmann::json& object, std::string_view key);

// `value` for an error message: its type and, cut short, its text ("the string \"gelu\"", "the
// number 1.5", "an array", "nothing" for a null pointer).
std::string DescribeJson(const nlohmann::json* value);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_JSON_H_
